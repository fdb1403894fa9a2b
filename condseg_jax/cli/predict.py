"""condseg-predict --workdir=RUN --input=FILE_OR_DIR --output=DIR [--classes=… | --preset=…]

Segments images with a trained network: one label map per image, on the image's own grid.

  condseg-predict --workdir=runs/ct --input=scan.nii.gz --output=masks --classes=liver,spleen

With --fusion=independent one mask per class is written, which may overlap. Several machines share a
folder of images with --num_parts=N and --part=0 … N-1; a run that was interrupted goes on with
--continue, since every label map is written last and whole.
"""

import functools
from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", "", "Folder of the training run.", flag_values=values)
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
  flags.DEFINE_bool("tta", False, "Average over mirror images, along the axes that the training "
                    "mirrored: slower.", flag_values=values)
  flags.DEFINE_bool("fast", False, "At 1.25 times the spacing: quicker and coarser.",
                    flag_values=values)
  flags.DEFINE_bool("two_pass", False, "Find where every class is by a coarser look first: for "
                    "volumes much larger than what is looked for.", flag_values=values)
  flags.DEFINE_list("within", [], "PART=WHOLE, as in tumour=liver: a part takes its voxels from "
                    "the whole, and pieces that do not touch it are removed.", flag_values=values)
  flags.DEFINE_bool("probabilities", False, "Also write the probabilities of all classes, as zarr.",
                    flag_values=values)
  flags.DEFINE_float("memory", None, "Gigabytes that prediction may take beside the image as read; "
                     "a quarter of the machine's, at most 4, when not given.", lower_bound=0.0,
                     flag_values=values)
  flags.DEFINE_integer("num_parts", 1, "Parts that the images are dealt to.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_integer("part", 0, "The part to work on.", lower_bound=0, flag_values=values)
  flags.DEFINE_bool("continue", False, "Skip images whose results are there.", flag_values=values)
  flags.DEFINE_bool("partition", False, "Each image in one pass instead of windows, split over all "
                    "devices: for accelerators that hold it only together.", flag_values=values)
  flags.DEFINE_bool("picture", True, "Write a picture of every result beside it.",
                    flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.need(values, "workdir", "input", "output")
  from condseg_jax.cache import keep_compiled
  from condseg_jax.formats import files
  from condseg_jax.predictor import load

  if values.part >= values.num_parts:
    raise InputError(f"--part={values.part}", f"there are {values.num_parts} parts",
                     f"0 to {values.num_parts - 1}", usage=True)
  keep_compiled()
  found = files.list_images(values.input)
  images = [(path, files.stem(path)) for path in found][values.part::values.num_parts]
  predictor = load(values.workdir, values.checkpoint)
  predictor.table.select(values.classes, values.preset)
  settings = {name: values[name].value
              for name in ("fusion", "threshold", "step", "tta", "fast", "two_pass", "partition")}
  settings["within"] = dict(_pair(text) for text in values.within)
  if values.memory is not None:
    settings["memory_bytes"] = int(values.memory * 1e9)
  output = Path(values.output)
  output.mkdir(parents=True, exist_ok=True)
  failed = []
  for number, (path, stem) in enumerate(images, 1):
    title = f"{number}/{len(images)} {stem}"
    if values["continue"].value and all(
        mask.exists() for mask in _masks(output, stem, predictor, values).values()):
      print(f"{title}: is there", flush=True)
      continue
    try:
      volume = files.read_volume(path, values.series)
      try:
        prediction = predictor.predict(
            volume, values.classes, values.preset, announce=functools.partial(_announce, title),
            probabilities=(str(output / f"{stem}_probabilities.zarr") if values.probabilities
                           else ""), **settings)
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


def _pair(text: str) -> tuple[str, str]:
  part, equals, whole = text.partition("=")
  if not equals:
    raise InputError(f"--within={text}", "is no PART=WHOLE", "as in --within=tumour=liver",
                     usage=True)
  return part, whole


def _announce(title: str, plan, seconds: float):
  """Says what is to come, and shows how far it is."""
  import tqdm
  text = f"{title}: {plan.windows} windows, about {plan.bytes / 1e6:.0f} MB, {seconds:.0f} s"
  if plan.passes > 1:
    text += (f" in {plan.passes} passes of {plan.classes} classes; in a single one "
             f"{plan.whole_bytes / 1e6:.0f} MB (--memory)")
  print(text, file=sys.stderr, flush=True)
  bar = tqdm.tqdm(total=plan.windows * plan.passes, unit="window", leave=False, delay=1)
  return bar.update


def _masks(output: Path, stem: str, predictor, values) -> dict[str, Path]:
  """Files of the result of one image: class → its mask, or "" → the label map."""
  suffix = ".png" if predictor.model.ndim == 2 else ".nii.gz"
  if values.fusion != "independent":
    return {"": output / f"{stem}{suffix}"}
  ids = predictor.table.select(values.classes, values.preset)
  names = [predictor.table.names[i] for i in ids]
  return {name: output / f"{stem}_{name.replace(' ', '_')}{suffix}" for name in names}


def _write(output: Path, source: Path, stem: str, volume, prediction, predictor, values) -> str:
  """Writes what was found in one image and says where."""
  from condseg_jax.formats import files

  masks, written = _masks(output, stem, predictor, values), []
  if any(path.resolve() == source.resolve() for path in masks.values()):
    raise InputError(output, "is the folder of the images", "choose another --output", usage=True)
  if values.picture:
    from condseg_jax.evaluate.pictures import draw_prediction
    picture = output / f"{stem}_overlay.png"
    draw_prediction(picture, volume, prediction.label, predictor.table, stem,
                    modality=predictor.plan.modality)
    written.append(picture)
  for name, path in masks.items():  # last of all, so that they tell that an image is done
    if name:
      files.write_label(path, prediction.masks[name], volume.affine, {name: 1})
    else:
      files.write_label(path, prediction.label.array, volume.affine, prediction.names)
    written.append(path)
  return "  ".join(map(str, reversed(written)))


if __name__ == "__main__":
  sys.exit(main())
