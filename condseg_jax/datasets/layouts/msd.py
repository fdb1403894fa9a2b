"""Importer for the Medical Segmentation Decathlon layout.

    DIR/dataset.json    "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"},
                        "training": [{"image": "./imagesTr/a.nii.gz", "label": …}, …];
                        voxels of a label called "ignore" are unlabelled; optional: "patient", a
                        regular expression, its group in an id is the patient
    DIR/splits.json     optional: {"train": [ids], "val": [ids]}, or "train": {class: [ids]}, where
                        the cases of a class annotate only this class
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import os
from pathlib import Path

from condseg_jax.annotation import Annotation
from condseg_jax.classes import normal_name
from condseg_jax.data.patients import patient_of
from condseg_jax.datasets.layouts import nnunet
from condseg_jax.datasets.layouts.declared import label_value
from condseg_jax.datasets.layouts.declared import modality_of
from condseg_jax.datasets.layouts.declared import patient_pattern
from condseg_jax.datasets.layouts.declared import void_values
from condseg_jax.datasets.raw import class_missing_error
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import read_json
from condseg_jax.errors import InputError
from condseg_jax.formats import files


def matches(root: Path) -> bool:
  """Returns whether a folder has this layout."""
  return (root / "dataset.json").exists() and not nnunet.matches(root)


def read_msd(root: str | os.PathLike) -> RawFolder:
  """Reads the labelled cases of a folder.

  Args:
    root: the folder with `dataset.json`.

  Raises:
    InputError: missing or damaged `dataset.json`, more than one channel, an id or a class in
      `splits.json` that `dataset.json` does not contain.
  """
  root = Path(os.path.abspath(root))  # the path "." has no name
  path = root / "dataset.json"
  tree = read_json(path)
  labels = _labels(path, tree)
  pairs = _pairs(path, tree)
  patient = patient_pattern(path, tree)
  annotation = Annotation.create(labels, void=void_values(labels), subject=path)
  cases: list[RawCase] = []
  for dataset, split, ids, keep in _groups(root, pairs, labels):
    kept = annotation.keep([normal_name(name) for name in keep]) if keep else annotation
    cases += [RawCase(i, pairs[i][0], (RawLabel(pairs[i][1], kept),), dataset, split,
                      patient_of(i, patient)) for i in ids]
  return RawFolder(root, modality_of(path, tree), tuple(cases))


def _pairs(path: Path, tree: Mapping) -> dict[str, tuple[Path, Path]]:
  """Returns case id → image and label of the training cases in `dataset.json`."""
  entries = tree.get("training") or []
  if not isinstance(entries, list) or not entries:
    raise InputError(path, "lists no training case", 'fill the list "training"')
  pairs = {}
  for number, entry in enumerate(entries, 1):
    image, label = (_member(path, entry, number, key) for key in ("image", "label"))
    pairs[files.stem(image)] = image, label
  if len(pairs) < len(entries):
    raise InputError(path, "lists two training cases of the same name",
                     "give every image a unique name")
  return pairs


def _member(path: Path, entry: object, number: int, key: str) -> Path:
  """Returns the path of a file, which must be in the folder of `dataset.json`."""
  name = entry.get(key) if isinstance(entry, dict) else None
  place = f'"{key}" in entry {number} of "training"'
  try:
    named = (isinstance(name, str) and b"\0" not in os.fsencode(name)
             and os.path.normpath(name) != ".")
  except UnicodeEncodeError:
    named = False
  if not named:
    raise InputError(path, f"{place} is not a file name",
                     'write {"image": FILE, "label": FILE}')
  # Not resolved: a link in the folder may point to a file elsewhere.
  member = Path(os.path.normpath(path.parent / str(name)))
  if not member.is_relative_to(path.parent):
    raise InputError(path, f"{place} is outside of the dataset: {name}",
                     "put the file, or a symbolic link to it, into the folder of dataset.json")
  return member


def _groups(root: Path, pairs: Mapping[str, tuple[Path, Path]],
            labels: Mapping[int, str]) -> list[tuple[str, str, list[str], list[str]]]:
  """Returns (dataset, split, case ids, classes to keep or none for all) of each group of cases."""
  splits_path = root / "splits.json"
  if not splits_path.exists():
    return [(root.name, "train", list(pairs), [])]
  splits = read_json(splits_path)
  groups: list[tuple[str, str, list[str], list[str]]] = []
  for split in ("train", "val", "test"):
    members = splits.get(split) or []
    for ids in members.values() if isinstance(members, dict) else [members]:
      if not isinstance(ids, list) or not all(isinstance(case_id, str) for case_id in ids):
        raise InputError(splits_path, f'"{split}": {ids!r:.60} is not a list of case ids',
                         'write {"train": [ids], "val": [ids]}')
    if isinstance(members, dict):
      _check_known(splits_path, members, labels)
      groups += [(normal_name(name), split, ids, [name]) for name, ids in members.items()]
    elif members:
      groups.append((root.name, split, members, []))
  for _, split, ids, keep in groups:
    if keep and not ids:
      raise class_missing_error(splits_path, keep[0],
                                f'fill its list in "{split}", or remove the class')
    for case_id in ids:
      if case_id not in pairs:
        raise InputError(splits_path, f"case {case_id!r} is not in dataset.json",
                         "correct the split or the dataset")
  counts = collections.Counter(case_id for _, _, ids, _ in groups for case_id in ids)
  repeated = sorted(case_id for case_id, count in counts.items() if count > 1)
  if repeated:
    raise InputError(splits_path, f"case {repeated[0]!r} is in two groups",
                     "assign every case to one group")
  if not groups:
    raise InputError(splits_path, "contains no case", 'fill "train" and "val"')
  return groups


def _check_known(path: Path, names: Iterable[str], labels: Mapping[int, str]) -> None:
  known = {normal_name(name) for name in labels.values()}
  for name in names:
    if normal_name(name) not in known:
      raise InputError(path, f"class {name!r} is not a label of the dataset",
                       f"labels: {', '.join(map(str, labels.values()))}")


def _labels(path: Path, tree: Mapping) -> dict[int, str]:
  """Returns value → name, from {"1": "liver"} (MSD) or {"liver": 1} (nnU-Net)."""
  labels = tree.get("labels")
  if not isinstance(labels, dict) or not labels:
    raise InputError(path, 'has no "labels"', 'add {"0": "background", "1": "liver", …}')
  if all(str(key).isdigit() for key in labels):
    return {label_value(value, path, "labels"): name for value, name in labels.items()}
  return {label_value(value, path, "labels"): name for name, value in labels.items()}
