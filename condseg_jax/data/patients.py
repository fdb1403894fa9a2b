"""Patients from case ids, and folds that keep the cases of a patient together."""

from collections.abc import Mapping
from collections.abc import Sequence
import re

import numpy as np

from condseg_jax.data.store import Case
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


def patient_of_case(case: Case) -> str:
  """Returns the patient of a prepared case, by its record or else by its id; "" if unknown."""
  return patient_of(case.id) if case.patient is None else case.patient


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


def assign_folds(groups: Mapping[str, Sequence[str]], folds: int, seed: int,
                 given: Mapping[str, int] | None = None) -> dict[str, int]:
  """Assigns groups to folds by size, largest first, each to the fold with the fewest cases.

  Args:
    groups: group, e.g. a patient, → its cases.
    folds: number of folds.
    seed: of the order of groups of equal size.
    given: groups whose fold is settled.

  Returns:
    Group → fold, from 0.
  """
  given = given or {}
  names = sorted(groups)
  order = np.random.default_rng(seed).permutation(len(names))
  sizes = [0] * folds
  fold_of = {}
  for name in names:
    if name in given:
      fold_of[name] = given[name]
      sizes[given[name]] += len(groups[name])
  for i in sorted(order, key=lambda i: -len(groups[names[i]])):
    if names[i] not in fold_of:
      smallest = int(np.argmin(sizes))
      sizes[smallest] += len(groups[names[i]])
      fold_of[names[i]] = smallest
  return fold_of
