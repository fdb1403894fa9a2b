"""Importer for the TotalSegmentator datasets: one mask for each class.

    DIR/sNNNN/ct.nii.gz (or mri.nii.gz)
    DIR/sNNNN/segmentations/CLASS.nii.gz
    DIR/meta.csv                      optional: image_id;…;split, with the split train, val or test

Source: https://zenodo.org/records/10047292
"""

import csv
import os
from pathlib import Path

from condseg_jax.annotation import Annotation
from condseg_jax.classes import checked_name
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.errors import InputError

IMAGES = {"ct.nii.gz": "ct", "mri.nii.gz": "mr"}
SPLITS = ("train", "val", "test")


def matches(root: Path) -> bool:
  """Returns whether a folder has this layout."""
  return any(next(root.glob(f"*/{name}"), None) for name in IMAGES)


def read_totalsegmentator(root: str | os.PathLike) -> RawFolder:
  """Reads the labelled cases; a case annotates the classes for which it has a mask.

  Raises:
    InputError: no cases, both CT and MR, or an unknown split in `meta.csv`.
  """
  root = Path(os.path.abspath(root))
  splits = _splits(root / "meta.csv")
  cases, faults, modalities = [], [], {}
  for folder in sorted(p.parent for p in root.glob("*/segmentations")):
    images = [folder / name for name in IMAGES if (folder / name).exists()]
    masks = sorted((folder / "segmentations").glob("*.nii.gz"))
    if not images or not masks:
      missing = "image" if masks else "label"
      faults.append(InputError(folder, f"has no {missing}", "expected ct.nii.gz or mri.nii.gz, and "
                               "segmentations/*.nii.gz", kind=f"no_{missing}"))
      continue
    modalities[IMAGES[images[0].name]] = folder
    labels = []
    for mask in masks:
      name = checked_name(mask.name.removesuffix(".nii.gz"), mask)
      labels.append(RawLabel(mask, Annotation({name: (1,)}, (), (0, 1))))
    split = splits.get(folder.name, "train")
    cases.append(RawCase(folder.name, images[0], tuple(labels), root.name, split))
  if not cases:
    raise InputError(root, "contains no case", "expected sNNNN/ct.nii.gz and sNNNN/segmentations/")
  if len(modalities) > 1:
    raise InputError(root, "contains both CT and MR", "train one network per modality")
  return RawFolder(root, next(iter(modalities)), tuple(cases), faults=tuple(faults))


def _splits(path: Path) -> dict[str, str]:
  if not path.exists():
    return {}
  with path.open(newline="", encoding="utf-8-sig") as stream:
    rows = list(csv.DictReader(stream, delimiter=";"))
  if rows and not {"image_id", "split"} <= set(rows[0]):
    raise InputError(path, "has no columns image_id and split", "use the file of the dataset")
  for row in rows:
    if row["split"] not in SPLITS:
      raise InputError(path, f"unknown split {row['split']!r} of {row['image_id']}",
                       f"choose from: {', '.join(SPLITS)}")
  return {row["image_id"]: row["split"] for row in rows}
