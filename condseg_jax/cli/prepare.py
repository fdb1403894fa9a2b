"""condseg-prepare --format=LAYOUT --source=DIR --out=DIR [--keep=CLASS,…] [--spacing=D,H,W]

Prepares a raw dataset as a store. Running it again resumes, and keeps the cases that are prepared
already; a store that was prepared with other settings is replaced only with --overwrite.

  condseg-prepare --format=msd --source=Task03_Liver --keep=liver --out=prepared/liver
  condseg-prepare --format=sliver07 --source=Sliver07 --out=prepared/sliver
  condseg-prepare --format=description --source=mine.yaml --out=prepared/mine

Datasets that train together need the same --spacing. condseg-train prepares raw folders itself,
with their median spacing; this command does it in advance, or with other settings. --cluster deals
the cases to the workers of a Dask cluster (extra `cluster`).

The formats `phantom` and `street` write synthetic raw datasets to --out.
"""

from collections.abc import Sequence
import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.cluster.connect import connected
from condseg_jax.datasets.layouts import FORMATS
from condseg_jax.errors import InputError
from condseg_jax.system import buckets

if TYPE_CHECKING:
  from condseg_jax.datasets.raw import RawFolder

SYNTHETIC = ("phantom", "street")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, in_buckets=("out",))


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_enum("format", None, (*FORMATS, *SYNTHETIC), "Layout of the source, or a synthetic "
                    "dataset.", flag_values=values)
  flags.DEFINE_string("source", "", "Folder of the raw dataset.", flag_values=values)
  flags.DEFINE_string("out", "", "Output folder.", flag_values=values)
  flags.DEFINE_bool("overwrite", False, "Replace a store that was prepared with other settings.",
                    flag_values=values)
  flags.DEFINE_list("keep", [], "Classes to keep as annotated; all if empty.", flag_values=values)
  flags.DEFINE_list("spacing", [], "Target spacing D,H,W in mm (H,W in pixels in 2-D); the median "
                    "of the dataset if empty.", flag_values=values)
  flags.DEFINE_enum("modality", "", ("", "ct", "mr", "rgb"), "folder: modality of the images.",
                    flag_values=values)
  flags.DEFINE_bool("unlabelled", False, "folder: prepare the images that have no mask, as a "
                    "dataset without classes.", flag_values=values)
  flags.DEFINE_integer("folds", 0, "Number of folds to split the cases into, patient by patient; 0 "
                       "keeps the split of the dataset.", flag_values=values)
  flags.DEFINE_integer("fold", 0, "Index of the fold that becomes val.", flag_values=values)
  flags.DEFINE_enum("carve", "auto", ("auto", "none", "cases", "frames"), "Makes partial labels: "
                    "assigns each training case to one class, at random (cases), or in blocks of "
                    "consecutive frames (frames); auto: frames for camvid and cityscapes, else "
                    "none.", flag_values=values)
  flags.DEFINE_integer("block", 6, "Number of frames in a block of --carve=frames.",
                       flag_values=values)
  flags.DEFINE_list("damage", [], "Corrupts training masks, for robustness studies: parts, "
                    "false_positives, false_negatives, boundary.", flag_values=values)
  flags.DEFINE_float("rate", 0.25, "Voxels that each --damage changes, as a fraction of the "
                     "positive voxels.", flag_values=values)
  flags.DEFINE_float("scribbles", 0.0, "Replaces training masks by scribbles in this fraction of "
                     "the slices; 0 for none.", flag_values=values)
  flags.DEFINE_enum("size", "quick", ("quick", "standard", "fine"), "phantom: size of the volumes.",
                    flag_values=values)
  flags.DEFINE_integer("seed", 0, "Seed of all random numbers.", lower_bound=0, flag_values=values)
  shell.define_cluster(values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "format", "out")
  shell.check_cluster(values)
  if values.format in SYNTHETIC and buckets.is_bucket(values.out):
    raise InputError("--out", f"must be a local folder, not {values.out}",
                     "prepare it into a bucket afterwards", usage=True)
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
    raise InputError("--spacing", str(error), "give numbers, e.g. 3,1.5,1.5", usage=True) from error
  from condseg_jax.datasets.prepare import prepare
  folder = _folder(values)
  with (connected(values.cluster) as cluster,
        as_flags(spacing="--spacing", out="--out", overwrite="--overwrite")):
    store = prepare(folder, values.out, spacing or None, overwrite=values.overwrite,
                    cluster=cluster)
  print(f"prepared {len(store.cases)} cases ({', '.join(store.table.names) or 'no masks'}) in "
        f"{store.root}, "
        f"spacing {','.join(f'{s:g}' for s in store.spacing)}")
  return 0


def _folder(values: flags.FlagValues) -> "RawFolder":
  """Reads the source, and modifies it as the flags require."""
  from condseg_jax.datasets import carve
  from condseg_jax.datasets.corrupt import Corruption
  from condseg_jax.datasets.discover import reader
  from condseg_jax.datasets.raw import keep_classes
  from condseg_jax.datasets.scribbles import Scribbles
  from condseg_jax.datasets.splits import k_fold

  with as_flags(modality="--modality", unlabelled="--unlabelled", folder="--format=folder"):
    read = reader(values.format, values.modality, unlabelled=values.unlabelled)
    folder = keep_classes(read(values.source), values.keep)
  if values.folds:
    with as_flags(folds="--folds", fold="--fold"):
      folder = k_fold(folder, values.folds, values.fold, values.seed)
  by = values.carve
  if by == "auto":
    by = "frames" if FORMATS[values.format].frames else "none"
  if by == "frames":
    with as_flags(block="--block"):
      folder = carve.partial_labels_by_frames(folder, values.block)
  elif by == "cases":
    folder = carve.partial_labels_by_cases(folder, values.seed)
  for kind in values.damage:
    with as_flags(kind="--damage", rate="--rate"):
      folder = folder.altered(Corruption(kind, values.rate, values.seed))
  if values.scribbles:
    with as_flags(rate="--scribbles"):
      folder = folder.altered(Scribbles(values.scribbles, values.seed))
  return folder


if __name__ == "__main__":
  sys.exit(main())
