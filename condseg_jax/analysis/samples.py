"""Labelled inputs to analyse a network on: one subvolume per case."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import UNLABELLED
from condseg_jax.data import sampling
from condseg_jax.data import selection
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.plan import Plan


class Sample(NamedTuple):
  """An input of the network.

  Attributes:
    id: case id.
    image: normalised, [*subvolume, C].
    masks: three-valued, [*subvolume, K]; unlabelled for classes that the case does not annotate.
    annotated: ids of the classes that the case annotates.
  """

  id: str
  image: np.ndarray
  masks: np.ndarray
  annotated: tuple[int, ...]


def read_samples(stores: Sequence[Store], table: ClassTable, plan: Plan, count: int,
                 split: str = "") -> tuple[list[Sample], str]:
  """Reads cases of a split, evenly spaced in each dataset.

  If any dataset annotates all classes of the network, only such datasets are used; otherwise all
  datasets contribute equally.

  Args:
    stores: prepared at the spacing of the plan.
    table: classes of the network.
    plan: subvolume and normalisation.
    count: maximum number of cases.
    split: `train`, `val` or `test`; if empty, `val` if it has cases, else `test`, else `train`.

  Returns:
    The samples, alternating between datasets, and their split.

  Raises:
    InputError: no case of the split annotates a class of the network.
  """
  present = {case.split for store in stores for case in store.cases}
  split = split or next((s for s in ("val", "test") if s in present), "train")
  datasets = selection.datasets(stores, split)
  known = [len(set(d.annotated) & set(table.names)) for d in datasets]
  if not any(known):
    raise InputError(", ".join(str(s.root) for s in stores), "annotates no class of this network "
                     f"in the split {split!r}", f"its classes are {', '.join(table.names)}")
  required = len(table) if len(table) in known else 1
  datasets = [d for d, n in zip(datasets, known, strict=True) if n >= required]
  turns = _interleave([range(len(d.cases)) for d in datasets])[:count]
  shares = [sum(number == i for number, _ in turns) for i in range(len(datasets))]
  spaced = [_evenly_spaced(d, share) for d, share in zip(datasets, shares, strict=True)]
  chosen = [pair for _, pair in _interleave(spaced)]
  return [_read(store, case, table, plan) for store, case in chosen], split


def centred_start(length: int, size: int, centre: float) -> int:
  """Returns the first index of a window around a centre, shifted to lie inside the axis.

  Args:
    length: length of the axis.
    size: size of the window; if larger than the axis, the axis is centred in the window.
    centre: centre of the window.
  """
  if size >= length:
    return -((size - length) // 2)
  return int(np.clip(round(centre) - size // 2, 0, length - size))


def _interleave(lists: Sequence[Sequence]) -> list[tuple[int, object]]:
  """Returns (index of the list, item): the first item of every list, then the second, …"""
  longest = max(map(len, lists), default=0)
  return [(i, items[n]) for n in range(longest) for i, items in enumerate(lists) if n < len(items)]


def _evenly_spaced(dataset: selection.Dataset, count: int) -> list[tuple[Store, Case]]:
  indices = np.linspace(0, len(dataset.cases) - 1, count).round().astype(int)
  return [(dataset.store, dataset.cases[i]) for i in indices]


def _read(store: Store, case: Case, table: ClassTable, plan: Plan) -> Sample:
  """Reads the subvolume around the structures of a case, padded at its border as in training."""
  names = [name for name in table.names if name in case.annotated]
  positions = [p for name in names for p in case.foreground[name]]
  centre = np.mean(positions, axis=0) if positions else np.array(case.shape) / 2
  start = [centred_start(*axis) for axis in
           zip(case.shape, plan.subvolume, centre.tolist(), strict=True)]
  inside, padding = sampling.read_box(case.shape, plan.subvolume, start)
  image = np.pad(store.read_image(case, inside), (*padding, (0, 0)), mode="edge")
  masks = np.full((*plan.subvolume, len(table)), UNLABELLED, np.uint8)
  within = tuple(slice(low, size - high)
                 for (low, high), size in zip(padding, plan.subvolume, strict=True))
  ids = [table.index(name) for name in names]
  for i, mask in zip(ids, store.read_masks(case, names, inside), strict=True):
    masks[(*within, i)] = mask
  return Sample(case.id, plan.normalise(image, case.mean, case.sd), masks, tuple(ids))
