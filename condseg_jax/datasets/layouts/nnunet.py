"""Importer for nnU-Net's raw layout (version 2).

    DIR/dataset.json     "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1},
                         "file_ending": ".nii.gz"; a label may be a list of values (a region);
                         voxels of a label called "ignore" are unlabelled; optional: "patient", a
                         regular expression, its group in an id is the patient
    DIR/imagesTr/ID_0000.ENDING, DIR/labelsTr/ID.ENDING      training cases
    DIR/imagesTs/ID_0000.ENDING, DIR/labelsTs/ID.ENDING      test cases, where labelled

Source: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from collections.abc import Mapping
import os
from pathlib import Path
import re

from condseg_jax.annotation import Annotation
from condseg_jax.classes import checked_name
from condseg_jax.data.patients import patient_of
from condseg_jax.datasets.layouts.declared import label_value
from condseg_jax.datasets.layouts.declared import modality_of
from condseg_jax.datasets.layouts.declared import patient_pattern
from condseg_jax.datasets.raw import label_missing_error
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import read_json
from condseg_jax.errors import InputError

CHANNEL = "_0000"


def matches(root: Path) -> bool:
  """Returns whether a folder has this layout."""
  path = root / "dataset.json"
  return path.exists() and "file_ending" in read_json(path)


def read_nnunet(root: str | os.PathLike) -> RawFolder:
  """Reads the labelled cases of a folder.

  Raises:
    InputError: damaged `dataset.json`, several channels, no labelled case.
  """
  root = Path(os.path.abspath(root))
  path = root / "dataset.json"
  tree = read_json(path)
  ending = tree.get("file_ending")
  if not isinstance(ending, str) or not re.fullmatch(r"\.[A-Za-z0-9.]+", ending):
    raise InputError(path, 'has no "file_ending"', 'add e.g. "file_ending": ".nii.gz"')
  annotation, patient = _annotation(path, tree), patient_pattern(path, tree)
  cases, faults = [], []
  for split, suffix in (("train", "Tr"), ("test", "Ts")):
    images, labels = f"images{suffix}", f"labels{suffix}"
    if not (root / labels).is_dir():
      continue
    for image in sorted((root / images).glob(f"*{CHANNEL}{ending}")):
      case_id = image.name.removesuffix(CHANNEL + ending)
      label = root / labels / (case_id + ending)
      if not label.exists():
        faults.append(label_missing_error(image, label))
        continue
      cases.append(RawCase(case_id, image, (RawLabel(label, annotation),), root.name, split,
                           patient_of(case_id, patient)))
  if not cases:
    raise InputError(root, "contains no labelled case",
                     f"expected imagesTr/ID{CHANNEL}{ending} and labelsTr/ID{ending}")
  return RawFolder(root, modality_of(path, tree), tuple(cases), faults=tuple(faults))


def _annotation(path: Path, tree: Mapping) -> Annotation:
  labels = tree.get("labels")
  if not isinstance(labels, dict) or not labels:
    raise InputError(path, 'has no "labels"', 'add {"background": 0, "liver": 1, …}')
  values = {checked_name(name, path): tuple(label_value(v, path, "labels") for v in (
      value if isinstance(value, list) else [value])) for name, value in labels.items()}
  void = values.pop("ignore", ())
  known = tuple(sorted({0, *void, *(v for region in values.values() for v in region)}))
  values = {name: region for name, region in values.items() if region != (0,)}
  return Annotation(values, void, known)
