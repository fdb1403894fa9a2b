"""K-fold splits of a raw dataset that keep the cases of a patient together."""

import dataclasses

from condseg_jax.data.patients import assign_folds
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.errors import InputError


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
  fold_of = assign_folds(groups, folds, seed)
  held_out = {case_id for name, ids in groups.items() if fold_of[name] == fold for case_id in ids}
  cases = tuple(case if case.split == "test" else
                dataclasses.replace(case, split="val" if case.id in held_out else "train")
                for case in folder.cases)
  provenance = {**folder.provenance, "folds": {"folds": folds, "fold": fold, "seed": seed}}
  return dataclasses.replace(folder, cases=cases, provenance=provenance)
