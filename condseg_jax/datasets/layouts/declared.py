"""Entries that the descriptions of several layouts have in common."""

from collections.abc import Mapping
import operator
import os
from pathlib import Path

from condseg_jax.classes import normal_name
from condseg_jax.data.patients import check_pattern
from condseg_jax.errors import InputError

MODALITIES = {"ct": "ct", "mri": "mr", "mr": "mr", "t1": "mr", "t2": "mr", "rgb": "rgb"}


def modality_of(path: Path, tree: Mapping) -> str:
  """Returns `ct`, `mr` or `rgb`, from "modality" (MSD) or "channel_names" (nnU-Net).

  Args:
    path: the file, for error messages.
    tree: its content.

  Raises:
    InputError: several channels other than red, green, blue, or an unknown modality.
  """
  channels = tree.get("modality") or tree.get("channel_names") or {}
  if not isinstance(channels, dict):
    raise InputError(path, f"modality {channels!r} is not an object", 'write {"0": "CT"}')
  names = [str(name).strip().lower() for name in channels.values()]
  if names in (["r", "g", "b"], ["red", "green", "blue"]):
    return "rgb"
  if len(names) != 1:
    raise InputError(path, f"declares {len(names)} channels", "use images of one channel, and "
                     'declare it as "modality": {"0": "CT"}')
  if names[0] not in MODALITIES:
    raise InputError(path, f"unknown modality {names[0]!r}",
                     f"choose from: {', '.join(sorted(MODALITIES))}")
  return MODALITIES[names[0]]


def void_values(labels: Mapping[int, str]) -> list[int]:
  """Returns the values of unlabelled voxels, which are called `ignore`."""
  return [value for value, name in labels.items() if normal_name(name) == "ignore"]


def label_value(value: object, path: str | os.PathLike, key: str) -> int:
  """Returns a label value: a whole number, or a text of digits.

  Args:
    value: the entry.
    path: the file, for the error.
    key: of the entry, for the error.

  Raises:
    InputError: anything else.
  """
  try:
    number = -1 if isinstance(value, bool) else (
        int(value) if isinstance(value, str) else operator.index(value))  # type: ignore[arg-type]
  except (TypeError, ValueError):
    number = -1
  if number < 0:
    raise InputError(path, f'"{key}": {value!r:.60} is not a label value', "give whole numbers ≥ 0")
  return number


def patient_pattern(path: Path, tree: Mapping) -> str:
  """Returns the entry "patient" of `dataset.json`, an addition to its layouts; "" without one.

  Raises:
    InputError: it is not a regular expression with a group.
  """
  return check_pattern(tree.get("patient") or "", path)
