"""Folds for cross-validation: every dataset is split by patient."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from condseg_jax.data.patients import assign_folds
from condseg_jax.data.patients import patient_of_case
from condseg_jax.data.selection import Dataset
from condseg_jax.data.selection import Fold
from condseg_jax.errors import InputError


class Place(NamedTuple):
  """Where a case is in a cross-validation.

  Attributes:
    fold: the member that does not train on it, from 0.
    patient: cases of one patient are in one fold.
  """

  fold: int
  patient: str


def split(datasets: Sequence[Dataset], folds: int, seed: int) -> dict[str, Place]:
  """Splits the cases of every dataset into folds of nearly equal numbers, patient by patient.

  A patient who is in several datasets of one store is in the same fold in each of them.

  Args:
    datasets: the training datasets.
    folds: number of folds, at least 2.
    seed: the split depends on it and on the ids of the cases.

  Returns:
    Case, see `Dataset.key`, → its place.

  Raises:
    InputError: fewer patients in a dataset than folds, a dataset that would be held out as a whole,
      or two cases of the same key.
  """
  if folds < 2:
    raise InputError("folds", f"must be at least 2, not {folds}", "give a number of folds",
                     usage=True)
  roots = list(dict.fromkeys(str(d.store.root) for d in datasets))
  fold_of: dict[str, int] = {}
  places: dict[str, Place] = {}
  for dataset in datasets:
    # Equal names in several stores are those of different patients.
    store = f"{roots.index(str(dataset.store.root))}/" if len(roots) > 1 else ""
    groups: dict[str, list[str]] = {}
    for case in dataset.cases:
      patient = patient_of_case(case)
      groups.setdefault(store + (patient or f"case {case.id}"), []).append(case.key)
    if len(groups) < folds:
      raise InputError("folds", f"dataset {dataset.name!r} has {len(groups)} patients for {folds} "
                       "folds", "use fewer folds", usage=True)
    found = assign_folds(groups, folds, seed, fold_of)
    if len(set(found.values())) < 2:
      raise InputError("folds", f"all patients of dataset {dataset.name!r} are in one fold, since "
                       "other datasets have the same patients", "use another seed, or fewer folds",
                       usage=True)
    fold_of |= found
    for patient, keys in groups.items():
      for key in keys:
        if key in places:
          raise InputError(key, "is the name of two cases", "rename one of the datasets")
        places[key] = Place(found[patient], patient)
  return places


def fold(places: Mapping[str, Place], number: int) -> Fold:
  """Returns the cases that one member trains on, and those that it must not see."""
  held_out = frozenset(key for key, place in places.items() if place.fold == number)
  return Fold(frozenset(places) - held_out, held_out)
