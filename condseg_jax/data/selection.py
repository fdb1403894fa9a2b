"""What a run trains on: datasets of its stores, restricted to classes, cases and folds."""

from collections.abc import Container
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.config import Data
from condseg_jax.data.patients import patient_of_case
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Cases that are sampled together and annotate the same classes.

  Attributes:
    name: name of the dataset.
    store: store that holds its cases.
    cases: its cases.
    learned: the classes to learn; all annotated classes when empty.
    number: index among all datasets; seeds its samples independently of the selection.
  """

  name: str
  store: Store
  cases: tuple[Case, ...]
  learned: tuple[str, ...] = ()
  number: int = 0

  @property
  def annotated(self) -> tuple[str, ...]:
    return self.learned or self.cases[0].annotated

  def only(self, keys: Container[str]) -> "Dataset":
    """Returns the dataset with the cases of some keys; there may be none."""
    return dataclasses.replace(self, cases=tuple(c for c in self.cases if c.key in keys))


class Fold(NamedTuple):
  """The cases of one member of a cross-validation, by their keys (see `Case.key`).

  Attributes:
    training: those it trains on.
    held_out: those it must not see.
  """

  training: frozenset[str]
  held_out: frozenset[str]


def datasets(stores: Sequence[Store], split: str = "train") -> list[Dataset]:
  """Returns the datasets of a split that annotate a class: cases grouped by store and dataset name.

  Raises:
    InputError: the split has none, or cases of one dataset annotate different classes.
  """
  out = [d for d in _grouped(stores, split) if d.annotated]
  if not out:
    raise InputError(", ".join(str(s.root) for s in stores),
                     f"no case of the split {split!r} has a mask", "check splits.json")
  return [dataclasses.replace(d, number=number) for number, d in enumerate(out)]


def bare_datasets(stores: Sequence[Store]) -> list[Dataset]:
  """Returns the training datasets without any mask; their numbers follow those of `datasets`."""
  grouped = _grouped(stores, "train")
  first = sum(bool(d.annotated) for d in grouped)
  bare = (d for d in grouped if not d.annotated)
  return [dataclasses.replace(d, number=number) for number, d in enumerate(bare, first)]


def _grouped(stores: Sequence[Store], split: str) -> list[Dataset]:
  out = []
  for store in stores:
    chosen = [c for c in store.cases if c.split == split]
    for name in dict.fromkeys(c.dataset for c in chosen):
      cases = tuple(c for c in chosen if c.dataset == name)
      if any(c.annotated != cases[0].annotated for c in cases):
        raise InputError(store.root, f"cases of dataset {name!r} annotate different classes",
                         "give them different dataset names")
      out.append(Dataset(name, store, cases))
  return out


def include_classes(datasets: Sequence[Dataset], names: Sequence[str]) -> list[Dataset]:
  """Restricts datasets to some classes; datasets that annotate none of them are dropped.

  Args:
    datasets: any datasets.
    names: the classes to learn; all of them when empty.
  """
  names = [normal_name(name) for name in names]
  if not names:
    return list(datasets)
  kept = (dataclasses.replace(d, learned=tuple(n for n in d.annotated if n in names))
          for d in datasets)
  return [d for d in kept if d.learned]


def max_cases(dataset: Dataset, count: int, seed: int) -> Dataset:
  """Limits a dataset to at most `count` cases; smaller selections are subsets of larger ones.

  Args:
    dataset: any dataset.
    count: maximum number of cases; 0 for all.
    seed: seed of the selection.
  """
  if not count or count >= len(dataset.cases):
    return dataset
  order = np.random.default_rng(seed).permutation(len(dataset.cases))
  chosen = set(order[:count].tolist())
  return dataclasses.replace(
      dataset, cases=tuple(c for i, c in enumerate(dataset.cases) if i in chosen))


def hold_out(datasets: Sequence[Dataset], fraction: float, seed: int,
             least: int = 0) -> list[tuple[Dataset, Dataset]]:
  """Splits datasets into (training, held out), the latter for tuning and choosing the best step.

  The cases of a patient stay together, in all datasets of a store (see `patients.patient_of_case`);
  a case of unknown patient is one of its own. At least one patient of every dataset stays in
  training. The split depends on the seed, and on number and order of the cases.

  Args:
    datasets: the training datasets.
    fraction: of the cases of every dataset, rounded; with several cases per patient it may be more.
    seed: seed of the split.
    least: number of cases to hold out of a dataset of several patients, whatever the fraction.

  Raises:
    InputError: all patients of a dataset are held out because they are for other datasets.
  """
  known: dict[tuple[str, str], bool] = {}  # store and patient → whether they are held out
  parts = []
  for dataset in datasets:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in dataset.cases:
      patient = patient_of_case(case) or f"case {case.id}"
      groups.setdefault((str(dataset.store.root), patient), []).append(case)
    held = {key for key in groups if known.get(key)}
    count = min(max(round(fraction * len(dataset.cases)), least), len(dataset.cases) - 1)
    keys = list(groups)
    for key in (keys[i] for i in np.random.default_rng(seed).permutation(len(keys))):
      if sum(len(groups[k]) for k in held) >= count or len(held) >= len(groups) - 1:
        break
      if key not in known:
        held.add(key)
    if len(held) == len(groups):
      raise InputError("data.hold_out", f"leaves no patient of the dataset {dataset.name!r}: all "
                       "are held out for other datasets", "lower it, or use another seed")
    known |= {key: key in held for key in groups}
    out = {case.key for key in held for case in groups[key]}
    parts.append((dataset.only({case.key for case in dataset.cases} - out), dataset.only(out)))
  return parts


# --- classes ------------------------------------------------------------------------------------
def check_annotated(setting: str, names: Sequence[str], datasets: Sequence[Dataset]) -> None:
  """Raises InputError if no dataset annotates one of the classes that a setting names."""
  present = dict.fromkeys(name for d in datasets for name in d.annotated)
  for name in names:
    if normal_name(name) not in present:
      raise InputError(setting, f"{name!r} is annotated in no training dataset",
                       f"annotated: {', '.join(present)}", usage=True)


def class_table(training: Sequence[Dataset], stores: Sequence[Store], data: Data) -> ClassTable:
  """Returns the classes annotated in the training data, ordered by the config or by appearance."""
  present = dict.fromkeys(name for d in training for name in d.annotated)
  known = {c.name for s in stores for c in s.table.classes}
  left_out = known - set(present) if data.include_classes else set()
  names = [normal_name(n) for n in data.classes if normal_name(n) not in left_out]
  names = names or list(present)
  for name in names:
    if name not in present:
      raise InputError("data.classes", f"{name!r} is annotated in no training dataset",
                       f"annotated: {', '.join(present)}", usage=True)
  for name in present:
    if name not in names:
      raise InputError("data.classes", f"lacks {name!r}, which a dataset annotates",
                       "add it, or leave data.classes empty", usage=True)
  lateral = {c.name: c.no_mirror for s in stores for c in s.table.classes if c.name in names}
  for name, axes in data.lateral_axes.items():
    if normal_name(name) in left_out:
      continue
    if normal_name(name) not in names:
      raise InputError(f"data.lateral_axes.{name}", "is not a class of the training data",
                       f"classes: {', '.join(names)}", usage=True)
    lateral[normal_name(name)] = tuple(axes)
  presets = {key: [n for n in group if normal_name(n) not in left_out]
             for key, group in data.presets.items()}
  presets = {key: group for key, group in presets.items() if group or not left_out}
  pairs = [tuple(map(normal_name, pair)) for pair in data.overlapping]
  for name in (name for pair in pairs for name in pair):
    if name not in names and name not in left_out:
      raise InputError("data.overlapping", f"{name!r} is not a class of the training data",
                       f"classes: {', '.join(names)}", usage=True)
  pairs = [p for p in (*pairs, *(p for s in stores for p in s.overlapping)) if set(p) <= set(names)]
  return ClassTable.create(names, presets=presets, no_mirror=lateral, overlapping=pairs,
                           capacity=max(64, len(names)))
