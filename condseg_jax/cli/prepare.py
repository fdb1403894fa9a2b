"""condseg-prepare --format=LAYOUT --source=DIR --out=DIR [--keep=CLASS,…] [--spacing=D,H,W]

Turns a raw dataset into a prepared store; cases that are already prepared are kept.

  condseg-prepare --format=msd --source=Task03_Liver --keep=liver --out=prepared/liver
  condseg-prepare --format=sliver07 --source=Sliver07 --out=prepared/sliver
  condseg-prepare --format=description --source=mine.yaml --out=prepared/mine

Datasets that train together need the same --spacing. Training on raw folders prepares them itself,
with the median spacing of all of them; this command is for doing it beforehand or otherwise.

The formats `phantom` and `street` make the embedded example data, raw, in --out.
"""

import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError

FORMATS = ("msd", "nnunet", "totalsegmentator", "camvid", "cityscapes", "folder", "description",
           "sliver07", "nih_pancreas", "btcv", "phantom", "street")


def main(argv=None) -> int:
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_enum("format", None, FORMATS, "Layout of the source.", flag_values=values)
  flags.DEFINE_string("source", "", "Folder of the raw dataset.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder to write.", flag_values=values)
  flags.DEFINE_list("keep", [], "Classes to keep annotated; all when empty.", flag_values=values)
  flags.DEFINE_list("spacing", [], "Target spacing D,H,W in mm (H,W in pixels); the dataset's "
                    "median when empty.", flag_values=values)
  flags.DEFINE_enum("modality", "", ("", "ct", "mr", "rgb"), "folder: what the images are.",
                    flag_values=values)
  flags.DEFINE_integer("folds", 0, "Split the cases into so many folds, patients kept together; 0 "
                       "keeps the split of the dataset.", flag_values=values)
  flags.DEFINE_integer("fold", 0, "The fold that becomes val.", flag_values=values)
  flags.DEFINE_enum("carve", "auto", ("auto", "none", "cases", "frames"), "Single-class datasets "
                    "over disjoint training cases: dealt at random (cases), or in blocks of "
                    "consecutive frames; auto: frames for camvid and cityscapes, else none.",
                    flag_values=values)
  flags.DEFINE_integer("block", 6, "Frames in a block of --carve=frames.", flag_values=values)
  flags.DEFINE_list("damage", [], "Damages training masks for robustness studies: parts, "
                    "false_positives, false_negatives, boundary.", flag_values=values)
  flags.DEFINE_float("rate", 0.25, "Voxels that each --damage changes, as a part of the class's.",
                     flag_values=values)
  flags.DEFINE_float("scribbles", 0.0, "Replaces training masks by scribbles in this part of the "
                     "slices; 0 for none.", flag_values=values)
  flags.DEFINE_enum("size", "quick", ("quick", "standard", "fine"), "phantom: of the volumes.",
                    flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of all that is drawn at random.", lower_bound=0,
                       flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "format", "out")
  if values.format == "phantom":
    from condseg_jax.datasets.synthetic.phantom import write_abdomen
    write_abdomen(values.out, size=values.size, seed=values.seed)
    print(f"wrote abdominal CT phantoms to {values.out}")
    return 0
  if values.format == "street":
    from condseg_jax.datasets.synthetic.street import write_street
    write_street(values.out, seed=values.seed)
    print(f"wrote street scenes to {values.out}")
    return 0

  shell.require(values, "source")
  try:
    spacing = tuple(float(s) for s in values.spacing)
  except ValueError as error:
    raise InputError("--spacing", str(error), "numbers, as in 3,1.5,1.5", usage=True) from error
  from condseg_jax.datasets.prepare import prepare
  store = prepare(_folder(values), values.out, spacing or None)
  print(f"prepared {len(store.cases)} cases ({', '.join(store.table.names)}) in {store.root}, "
        f"spacing {','.join(f'{s:g}' for s in store.spacing)}")
  return 0


def _folder(values: flags.FlagValues):
  """What is in the source, and what is to be made of it."""
  from condseg_jax.datasets import carve
  from condseg_jax.datasets.corrupt import Corruption
  from condseg_jax.datasets.discover import FORMATS as LAYOUTS
  from condseg_jax.datasets.discover import reader
  from condseg_jax.datasets.raw import keep_classes
  from condseg_jax.datasets.scribbles import Scribbles
  from condseg_jax.datasets.splits import k_fold

  folder = keep_classes(reader(values.format, values.modality)(values.source), values.keep)
  if values.folds:
    folder = k_fold(folder, values.folds, values.fold, values.seed)
  how = values.carve
  if how == "auto":
    how = "frames" if LAYOUTS[values.format].frames else "none"
  if how == "frames":
    folder = carve.carve_frames(folder, values.block)
  elif how == "cases":
    folder = carve.carve_cases(folder, values.seed)
  for kind in values.damage:
    folder = folder.altered(Corruption(kind, values.rate, values.seed))
  if values.scribbles:
    folder = folder.altered(Scribbles(values.scribbles, values.seed))
  return folder


if __name__ == "__main__":
  sys.exit(main())
