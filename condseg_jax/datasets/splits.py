"""Patients from case ids, and k-fold splits that keep the cases of a patient together."""

import dataclasses
import re

import numpy as np

from condseg_jax.datasets.raw import RawFolder
from condseg_jax.errors import InputError

# Common ids: sub-01_ses-2 (BIDS), and a number after a number, as in liver_012_1, p03-frame07.
_PATIENT = (re.compile(r"^(sub-[^_]+)_"), re.compile(r"^(.*\d)[_-][A-Za-z]*[_-]?\d+$"))


def patient_of(case_id: str, pattern: str = "") -> str:
  """Returns the patient (or sequence, or place) that an id contains; "" if there is none.

  Args:
    case_id: id of a case.
    pattern: regular expression whose first group is the patient; patterns of common ids if empty.

  Raises:
    InputError: an invalid expression, or one without a group.
  """
  patterns: tuple[re.Pattern[str], ...] = _PATIENT
  if pattern:
    try:
      patterns = (re.compile(pattern),)
    except re.error as error:
      raise InputError(f"patient {pattern!r}", f"is not a valid regular expression ({error})",
                       'write e.g. "^([^_]+)"', usage=True) from error
    if not patterns[0].groups:
      raise InputError(f"patient {pattern!r}", "has no group", 'write e.g. "^([^_]+)"', usage=True)
  for expression in patterns:
    match = expression.search(case_id)
    if match:
      return match.group(1)
  return ""


def check_pattern(pattern: object, subject: object) -> str:
  """Returns a regular expression that a file declares for `patient_of`; "" for none.

  Args:
    pattern: the entry.
    subject: the file, for the error.

  Raises:
    InputError: it is not a regular expression with a group.
  """
  cure = 'write e.g. "^([^_]+)"'
  if not isinstance(pattern, str):
    raise InputError(subject, f'"patient": {pattern!r:.60} is not a regular expression', cure)
  try:
    patient_of("", pattern)
  except InputError as error:
    raise InputError(subject, f"{error.subject} {error.reason}", error.cure) from error
  return pattern


def k_fold(folder: RawFolder, folds: int, fold: int, seed: int = 0) -> RawFolder:
  """Splits a dataset into folds: one becomes `val`, the others `train`; `test` is unchanged.

  Cases of one group are always in the same fold. Groups are assigned by size, largest first and
  equal ones in random order, each to the fold with the fewest cases.

  Args:
    folder: the dataset.
    folds: number of folds, at least 2.
    fold: index of the held-out fold, from 0.
    seed: of the random order.

  Raises:
    InputError: fewer groups than folds, or a fold that does not exist.
  """
  if folds < 2:
    raise InputError("folds", f"must be at least 2, not {folds}", "give a number of folds",
                     usage=True)
  if not 0 <= fold < folds:
    raise InputError("fold", f"must be in [0, {folds - 1}], not {fold}", "folds count from 0",
                     usage=True)
  groups: dict[str, list[str]] = {}
  for case in folder.cases:
    if case.split != "test":
      groups.setdefault(case.group or f"case {case.id}", []).append(case.id)
  if len(groups) < folds:
    raise InputError(folder.root, f"{len(groups)} patients for {folds} folds", "use fewer folds",
                     usage=True)
  names = sorted(groups)
  order = np.random.default_rng(seed).permutation(len(names))
  held_out: set[str] = set()
  sizes = [0] * folds
  for i in sorted(order, key=lambda i: -len(groups[names[i]])):
    smallest = int(np.argmin(sizes))
    sizes[smallest] += len(groups[names[i]])
    if smallest == fold:
      held_out.update(groups[names[i]])
  cases = tuple(case if case.split == "test" else
                dataclasses.replace(case, split="val" if case.id in held_out else "train")
                for case in folder.cases)
  provenance = {**folder.provenance, "folds": {"folds": folds, "fold": fold, "seed": seed}}
  return dataclasses.replace(folder, cases=cases, provenance=provenance)
