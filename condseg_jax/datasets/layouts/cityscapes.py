"""Importer for Cityscapes: fine annotations, 19 classes.

    DIR/leftImg8bit/{train,val}/CITY/CITY_SEQ_FRAME_leftImg8bit.png
    DIR/gtFine/{train,val}/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png   or …_labelTrainIds.png

Label ids without a train id are unlabelled. The test split has no annotations.

Source of the ids: https://github.com/mcordts/cityscapesScripts (helpers/labels.py)
"""

import os
from pathlib import Path

from condseg_jax.annotation import Annotation
from condseg_jax.datasets.raw import label_missing_error
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.errors import InputError

IMAGE = "_leftImg8bit.png"
# Class → label id, in the order of the train ids.
LABEL_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}
ANNOTATIONS = {
    "_gtFine_labelIds.png": Annotation(
        {name: (value,) for name, value in LABEL_IDS.items()},
        tuple(v for v in range(34) if v not in LABEL_IDS.values()), tuple(range(34))),
    "_gtFine_labelTrainIds.png": Annotation(
        {name: (value,) for value, name in enumerate(LABEL_IDS)}, (255,), (*range(19), 255)),
}
NO_MIRROR = ("H",)  # street scenes are never upside down


def matches(root: Path) -> bool:
  """Returns whether a folder has this layout."""
  return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def read_cityscapes(root: str | os.PathLike) -> RawFolder:
  """Reads the labelled frames; each annotates every class, and its group is its city.

  Raises:
    InputError: no labelled frames.
  """
  root = Path(os.path.abspath(root))
  cases, faults = [], []
  for split in ("train", "val"):
    for image in sorted((root / "leftImg8bit" / split).glob(f"*/*{IMAGE}")):
      city, case_id = image.parent.name, image.name.removesuffix(IMAGE)
      folder = root / "gtFine" / split / city
      candidates = [RawLabel(folder / (case_id + suffix), annotation)
                    for suffix, annotation in ANNOTATIONS.items()]
      labels = [label for label in candidates if label.path.exists()]
      if not labels:
        faults.append(label_missing_error(image, candidates[0].path))
        continue
      cases.append(RawCase(case_id, image, (labels[0],), root.name, split, city))
  if not cases:
    raise InputError(root, "contains no labelled frames",
                     f"expected leftImg8bit/train/CITY/*{IMAGE} and gtFine")
  return RawFolder(root, "rgb", tuple(cases), {name: NO_MIRROR for name in LABEL_IDS},
                   faults=tuple(faults))
