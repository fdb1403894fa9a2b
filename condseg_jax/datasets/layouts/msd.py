"""Importer of the Medical Segmentation Decathlon layout.

    DIR/dataset.json    "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"},
                        "training": [{"image": "./imagesTr/a.nii.gz", "label": …}, …]
                        a label called "ignore" means: unlabelled
    DIR/splits.json     optional: {"train": [ids], "val": [ids]}, or "train": {class: [ids]}, where
                        the cases of a class annotate that class alone
"""

import collections
import os
from pathlib import Path

from condseg_jax.classes import Annotation
from condseg_jax.classes import normal_name
from condseg_jax.datasets.layouts import nnunet
from condseg_jax.datasets.layouts.declared import modality_of
from condseg_jax.datasets.layouts.declared import void_values
from condseg_jax.datasets.raw import nowhere
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import read_json
from condseg_jax.datasets.splits import patient_of
from condseg_jax.errors import InputError
from condseg_jax.formats import files


def matches(root: Path) -> bool:
  """Whether a folder looks like this layout."""
  return (root / "dataset.json").exists() and not nnunet.matches(root)


def read_msd(root) -> RawFolder:
  """The labelled cases of a folder.

  Args:
    root: the folder with `dataset.json`.

  Raises:
    InputError: no or damaged `dataset.json`, more than one channel, an id that `splits.json` names
      and `dataset.json` does not, a class that is no label.
  """
  root = Path(os.path.abspath(root))  # "." has no name
  path = root / "dataset.json"
  tree = read_json(path)
  labels = _labels(path, tree)
  entries = tree.get("training") or []
  if not entries:
    raise InputError(path, "lists no training case", 'fill its "training" list')
  try:
    pairs = {files.stem(e["image"]): (root / e["image"], root / e["label"]) for e in entries}
  except (KeyError, TypeError) as error:
    raise InputError(path, f'a "training" entry lacks {error}',
                     'each is {"image": FILE, "label": FILE}') from error
  if len(pairs) < len(entries):
    raise InputError(path, "names two training cases alike", "give every image its own name")

  annotation = Annotation.create(labels, void=void_values(labels))
  cases = []
  for dataset, split, ids, kept in _groups(root, pairs, labels):
    said = annotation.keep([normal_name(name) for name in kept]) if kept else annotation
    cases += [RawCase(i, pairs[i][0], (RawLabel(pairs[i][1], said),), dataset, split,
                      patient_of(i)) for i in ids]
  return RawFolder(root, modality_of(path, tree), tuple(cases))


def _groups(root, pairs, labels):
  """(dataset, split, case ids, classes kept) of every group of cases."""
  splits_path = root / "splits.json"
  if not splits_path.exists():
    return [(root.name, "train", list(pairs), ())]
  splits = read_json(splits_path)
  groups = []
  for split in ("train", "val", "test"):
    members = splits.get(split, [])
    if isinstance(members, dict):
      _check_known(splits_path, members, labels)
      groups += [(normal_name(name), split, ids, [name]) for name, ids in members.items()]
    elif members:
      groups.append((root.name, split, members, ()))
  for _, split, ids, kept in groups:
    if kept and not ids:
      raise nowhere(splits_path, kept[0], f'fill its list in "{split}", or leave the class out')
    for case_id in ids:
      if case_id not in pairs:
        raise InputError(splits_path, f"case {case_id!r} is not in dataset.json",
                         "correct the split or the dataset")
  seen = collections.Counter(case_id for _, _, ids, _ in groups for case_id in ids)
  doubled = sorted(case_id for case_id, count in seen.items() if count > 1)
  if doubled:
    raise InputError(splits_path, f"case {doubled[0]!r} stands in two groups",
                     "give every case one place")
  if not groups:
    raise InputError(splits_path, "names no case to use", 'fill "train" and "val"')
  return groups


def _check_known(path: Path, names, labels) -> None:
  known = {normal_name(name) for name in labels.values()}
  for name in names:
    if normal_name(name) not in known:
      raise InputError(path, f"class {name!r} is not among the dataset's labels",
                       f"labels: {', '.join(map(str, labels.values()))}")


def _labels(path: Path, tree) -> dict[int, str]:
  """Value → name, from {"1": "liver"} (MSD) or {"liver": 1} (nnU-Net)."""
  labels = tree.get("labels")
  if not isinstance(labels, dict) or not labels:
    raise InputError(path, 'has no "labels"', 'add {"0": "background", "1": "liver", …}')
  try:
    if all(str(key).isdigit() for key in labels):
      return {int(value): name for value, name in labels.items()}
    return {int(value): name for name, value in labels.items()}
  except (TypeError, ValueError) as error:
    raise InputError(path, f'"labels" is not value → name ({error})',
                     'write {"0": "background", "1": "liver", …}') from error
