"""condseg-next --workdir=RUN --images=FOLDER [--count=10] [--out=DIR] [--labelled=DIR/masks]

Which images to annotate next: those that the network is least sure of, most of all in classes with
few training cases, and that differ from each other. Best with a run of --folds, which knows what
Dice to expect and how many cases a class has.

  condseg-next --workdir=RUN --images=SCANS --count=10 --out=TODO

--out is a dataset to correct: the images in TODO/images, the network's masks in TODO/masks, their
values in TODO/classes.json. Correct the masks in place, then prepare them like any other data:

  condseg-verify TODO --modality=ct
  condseg-prepare --format=folder --modality=ct --source=TODO --out=STORE

Masks that exist are never written again, and images that were looked at before are not predicted
again for the order. --labelled names folders of masks; images with a mask of their name there are
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
import shutil
import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.errors import printable

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.cli.inputs import InputImage
  from condseg_jax.evaluate.next_images import Known
  from condseg_jax.evaluate.next_images import Ranked
  from condseg_jax.geometry import Volume
  from condseg_jax.predictor import Predictor

RECORD = "looked_at.json"  # in --out: what was found in every image


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, in_buckets=("workdir",))


def _define(values: flags.FlagValues) -> None:
  shell.define_model(values)
  shell.define_verify(values)
  flags.DEFINE_string("images", "", "Folder of images, or a text file with one image or DICOM "
                      "folder per line.", flag_values=values)
  flags.DEFINE_list("classes", [], "Classes to annotate; all when empty.", flag_values=values)
  flags.DEFINE_integer("count", 10, "Images to choose.", lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", "", "Folder for these images, with the network's masks.",
                      flag_values=values)
  flags.DEFINE_list("labelled", [], "Folders of masks of images that are annotated already.",
                    flag_values=values)
  flags.DEFINE_string("json", "", "File for the order of all images.", flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "workdir", "images")
  from condseg_jax.cli import inputs
  from condseg_jax.evaluate import next_images
  from condseg_jax.loading import load
  from condseg_jax.model_io.fold_run import FoldRun
  from condseg_jax.model_io.fold_run import is_fold_run
  from condseg_jax.system.atomic import write_text
  from condseg_jax.system.cache import enable_compilation_cache

  images = _unlabelled(inputs.list_inputs(Path(values.images)), values.labelled)
  if values.out:
    inputs.check_apart(images, Path(values.images), Path(values.out) / "images", False)
    inputs.check_apart(images, Path(values.images), Path(values.out) / "masks", False)
    inputs.check_writable(Path(values.out))
  enable_compilation_cache()
  with as_flags(members="--members"):
    predictor = load(values.workdir, values.checkpoint, verify=values.verify == "on",
                     members=values.members)
  names = [predictor.table.names[i] for i in predictor.table.select(values.classes)]
  scores = FoldRun.open(values.workdir).scores if is_fold_run(values.workdir) else {}
  known = next_images.known_classes(scores, names)
  found, failures = _look(values, predictor, names, images)
  ranked = next_images.order({stem: next_images.gains(one["quality"], known)
                              for stem, one in found.items()},
                             {stem: one["features"] for stem, one in found.items()})
  print("\n".join(_table(ranked[:values.count], known if scores else {})))
  if values.json:
    write_text(values.json, json.dumps(next_images.to_json(ranked), indent=1) + "\n")
  if values.out:
    by_stem = {image.stem: image for image in images}
    _write(Path(values.out), predictor, names, [by_stem[row.name] for row in
                                                ranked[:values.count]])
    print(f"to correct: {Path(values.out) / 'masks'}")
  for failure in failures:
    print(f"failed: {failure}", file=sys.stderr)
  return 1 if failures else 0


def _unlabelled(images: list[InputImage], folders: Sequence[str]) -> list[InputImage]:
  """Returns the images without a mask in some folders."""
  from condseg_jax.formats import files
  done: set[str] = set()
  for folder in folders:
    if not Path(folder).is_dir():
      raise InputError(f"--labelled={folder}", "is not a folder", "name the folder of the masks",
                       usage=True)
    done |= {files.stem(path) for path in Path(folder).rglob("*") if files.is_image(path)}
  left = [image for image in images if image.stem not in done]
  if not left:
    raise InputError("--images", "has no image without a mask in --labelled", "add images",
                     usage=True)
  return left


def _look(values: flags.FlagValues, predictor: Predictor, names: list[str],
          images: list[InputImage]) -> tuple[dict[str, dict], list[str]]:
  """Returns image → quality of its classes, and features; and the failures, one line each."""
  from condseg_jax.cli import inputs
  from condseg_jax.system.atomic import write_text
  record = Path(values.out) / RECORD if values.out else None
  network = {"workdir": str(Path(values.workdir).resolve()), "step": predictor.step,
             "members": len(predictor.members), "classes": names,
             "training": json.loads(json.dumps(predictor.training))}
  earlier, found, failures = _earlier(record, network), {}, []
  for number, image in enumerate(images, 1):
    print(f"\r{number} of {len(images)} images", end="", file=sys.stderr, flush=True)
    entry = earlier.get(image.stem)
    if entry is None or not inputs.is_unchanged(image, entry["input"]):
      try:
        entry = _measures(predictor, names, image) | {"input": inputs.identity(image)}
      except (InputError, OSError, MemoryError) as error:
        failures.append(f"{printable(image.label)}: {printable(error)}")
        continue
      earlier[image.stem] = entry
      if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(network | {"images": earlier}))
    found[image.stem] = entry
  print(file=sys.stderr)
  return found, failures


def _earlier(record: Path | None, network: Mapping) -> dict[str, dict]:
  """Returns what the same network found before; {} if it did not look."""
  try:
    tree = json.loads(record.read_text(encoding="utf-8")) if record is not None else {}
    same = all(tree.get(key) == value for key, value in network.items())
    return {stem: {key: one[key] for key in ("input", "quality", "features")}
            for stem, one in tree["images"].items()} if same else {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return {}


def _measures(predictor: Predictor, names: list[str], image: InputImage) -> dict:
  """Looks at an image."""
  from condseg_jax.infer.pooled_features import pooled_features
  from condseg_jax.infer.sliding_window import window_functions
  volume = _read(predictor, image)
  prediction = predictor.predict(volume, names)
  functions = predictor.functions or window_functions(predictor.model)
  features = pooled_features(functions, predictor.variables, predictor.normalise(volume).array,
                             predictor.plan.subvolume, prediction.names[names[0]] - 1)
  return {"quality": {name: dict(entry) for name, entry in prediction.quality.items()},
          "features": [float(f"{value:.5g}") for value in features]}


def _read(predictor: Predictor, image: InputImage) -> Volume:
  from condseg_jax.formats import files
  from condseg_jax.infer.image_check import check_image
  from condseg_jax.infer.image_check import enforce
  volume = files.read_volume(image.path, image.series)
  enforce(image.path, check_image(volume, predictor.plan, predictor.training,
                                  modality=files.modality(image.path, image.series)))
  return volume


def _table(ranked: Sequence[Ranked], known: Mapping[str, Known]) -> list[str]:
  lines = [f"{'':>4}  {'gain':>8}  {'most of it in':20} {'cases':>6}  image"]
  return lines + [f"{number:4}  {row.gain:8.5f}  {row.class_name:20} "
                  f"{known[row.class_name].cases if known else '?':>6}  {printable(row.name)}"
                  for number, row in enumerate(ranked, 1)]


def _write(out: Path, predictor: Predictor, names: list[str], images: list[InputImage]) -> None:
  """Writes images with the network's masks, for correction; existing masks stay."""
  from condseg_jax.formats import files
  from condseg_jax.formats.nifti import write_nifti
  from condseg_jax.system.atomic import replacing
  from condseg_jax.system.atomic import write_text
  colors = dict(zip(predictor.table.names, predictor.table.colors, strict=True))
  suffix = ".png" if predictor.model.ndim == 2 else ".nii.gz"
  for folder in ("images", "masks"):
    (out / folder).mkdir(parents=True, exist_ok=True)
  write_text(out / "classes.json", json.dumps({name: predictor.table.index(name) + 1
                                               for name in names}, indent=1) + "\n")
  for image in images:
    mask = out / "masks" / f"{image.stem}{suffix}"
    if mask.exists():
      continue
    volume = _read(predictor, image)
    paths = files.members(image.path, image.series)
    if paths == [image.path]:
      ending = image.path.name.removeprefix(files.stem(image.path))
      with replacing(out / "images" / f"{image.stem}{ending}") as temporary:
        shutil.copyfile(image.path, temporary)
    else:
      write_nifti(out / "images" / f"{image.stem}.nii.gz", volume)
    prediction = predictor.predict(volume, names)
    files.write_label(mask, prediction.label.array, volume.affine, prediction.names, colors)


if __name__ == "__main__":
  sys.exit(main())
