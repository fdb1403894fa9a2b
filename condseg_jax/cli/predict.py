"""condseg-predict --workdir=RUN --input=FILE_OR_DIR --output=DIR [--classes=… | --preset=…]

Segments images with a trained network: one label map per image, on the image's own grid.

  condseg-predict --workdir=runs/ct --input=scan.nii.gz --output=masks --classes=liver,spleen

With --fusion=independent one mask per class is written, which may overlap.
"""

from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", "", "Folder of the training run, or a bundle.", flag_values=values)
  flags.DEFINE_string("checkpoint", "last", "last, best or a step.", flag_values=values)
  flags.DEFINE_string("input", "", "An image, a folder of images, or the folder of a DICOM series.",
                      flag_values=values)
  flags.DEFINE_string("series", "", "SeriesInstanceUID, where a DICOM folder holds several.",
                      flag_values=values)
  flags.DEFINE_string("output", "", "Folder for the masks.", flag_values=values)
  flags.DEFINE_list("classes", [], "Classes to look for; all when empty.", flag_values=values)
  flags.DEFINE_string("preset", "", "A named group of classes.", flag_values=values)
  flags.DEFINE_enum("fusion", "argmax", ("argmax", "softmax", "independent"),
                    "How classes share voxels.", flag_values=values)
  flags.DEFINE_float("threshold", 0.5, "Probability from which a voxel belongs to a class.",
                     lower_bound=0.0, upper_bound=1.0, flag_values=values)
  flags.DEFINE_float("step", 0.5, "Distance of windows as a part of the window.", lower_bound=0.05,
                     upper_bound=1.0, flag_values=values)
  flags.DEFINE_bool("partition", False, "Each image in one pass instead of windows, split over all "
                    "devices: for accelerators that hold it only together.", flag_values=values)
  flags.DEFINE_enum("runtime", "jax", ("jax", "onnx"), "onnx: onnxruntime on the CPU, for a bundle "
                    "exported with --onnx.", flag_values=values)
  flags.DEFINE_bool("picture", True, "Write a picture of every result beside it.",
                    flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.need(values, "workdir", "input", "output")
  if values.partition and values.runtime != "jax":
    raise InputError("--partition", "is done by JAX alone", "leave --runtime out", usage=True)
  import tqdm

  from condseg_jax.cache import keep_compiled
  from condseg_jax.formats import files
  from condseg_jax.predictor import load

  keep_compiled()
  images = files.list_images(values.input)
  stems = [files.stem(path) for path in images]
  predictor = load(values.workdir, values.checkpoint, values.runtime)
  predictor.table.select(values.classes, values.preset)
  output = Path(values.output)
  output.mkdir(parents=True, exist_ok=True)
  failed = []
  for path, stem in zip(tqdm.tqdm(images, desc="predicting", disable=len(images) < 2), stems,
                        strict=True):
    try:
      volume = files.read_volume(path, values.series)
      try:
        prediction = predictor.predict(volume, values.classes, values.preset, fusion=values.fusion,
                                       threshold=values.threshold, step=values.step,
                                       partition=values.partition)
      except InputError as error:
        raise error if error.usage else InputError(path, error.reason, error.cure) from error
      print(f"{_write(output, path, stem, volume, prediction, predictor, values)}", flush=True)
    except InputError as error:
      if error.usage or len(images) == 1:
        raise
      failed.append(error)  # one bad case does not stop the others
  for error in failed:
    print(f"failed: {error}", file=sys.stderr)
  return 1 if failed else 0


def _write(output: Path, source: Path, stem: str, volume, prediction, predictor, values) -> str:
  """Writes what was found in one image and says where."""
  from condseg_jax.formats import files

  suffix = ".png" if volume.ndim == 2 else ".nii.gz"
  written = []
  if values.fusion == "independent":
    for name, mask in prediction.masks.items():
      path = output / f"{stem}_{name.replace(' ', '_')}{suffix}"
      files.write_label(path, mask, volume.affine, {name: 1})
      written.append(path)
  else:
    path = output / f"{stem}{suffix}"
    if path.resolve() == source.resolve():
      raise InputError(output, "is the folder of the images", "choose another --output", usage=True)
    files.write_label(path, prediction.label.array, volume.affine, prediction.names)
    written.append(path)
  if values.picture:
    from condseg_jax.evaluate.pictures import draw_prediction
    picture = output / f"{stem}_overlay.png"
    draw_prediction(picture, volume, prediction.label, predictor.table, stem,
                    modality=predictor.plan.modality)
    written.append(picture)
  return "  ".join(map(str, written))


if __name__ == "__main__":
  sys.exit(main())
