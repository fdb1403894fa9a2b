"""Which cases belong together, and k-fold splits that do not part them."""

import dataclasses
import re

import numpy as np

from condseg_jax.datasets.raw import RawFolder
from condseg_jax.errors import InputError

# Ids that say so: sub-01_ses-2 (BIDS), and a number after a number, as in liver_012_1, p03-frame07.
_PATIENT = (re.compile(r"^(sub-[^_]+)_"), re.compile(r"^(.*\d)[_-][A-Za-z]*[_-]?\d+$"))


def patient_of(case_id: str, pattern: str = "") -> str:
  """The patient (sequence, place) that an id names; "" when it names none.

  Args:
    pattern: regular expression whose first group is the patient; a rule for common ids when empty.

  Raises:
    InputError: the expression is none, or has no group.
  """
  patterns = _PATIENT
  if pattern:
    try:
      patterns = (re.compile(pattern),)
    except re.error as error:
      raise InputError(f"patient {pattern!r}", f"is no regular expression ({error})",
                       'write e.g. "^([^_]+)"', usage=True) from error
    if not patterns[0].groups:
      raise InputError(f"patient {pattern!r}", "has no group", 'write e.g. "^([^_]+)"', usage=True)
  for one in patterns:
    match = one.search(case_id)
    if match:
      return match.group(1)
  return ""


def k_fold(folder: RawFolder, folds: int, fold: int, seed: int = 0) -> RawFolder:
  """One fold of a dataset becomes `val`, the others `train`; `test` cases stay.

  Cases of one group are never parted. Groups are dealt to the folds by size, largest first and
  equal ones in random order, each to the fold with the fewest cases.

  Args:
    folds: how many; at least 2.
    fold: which of them is held out, from 0.
    seed: of the order.

  Raises:
    InputError: fewer groups than folds, or a fold that does not exist.
  """
  if folds < 2 or not 0 <= fold < folds:
    raise InputError("--fold", f"fold {fold} of {folds}", "0 to folds - 1, of at least 2 folds",
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
  held, sizes = set(), [0] * folds
  for i in sorted(order, key=lambda i: -len(groups[names[i]])):
    place = int(np.argmin(sizes))
    sizes[place] += len(groups[names[i]])
    if place == fold:
      held.update(groups[names[i]])
  cases = tuple(case if case.split == "test" else
                dataclasses.replace(case, split="val" if case.id in held else "train")
                for case in folder.cases)
  recipe = {**folder.recipe, "folds": {"folds": folds, "fold": fold, "seed": seed}}
  return dataclasses.replace(folder, cases=cases, recipe=recipe)
