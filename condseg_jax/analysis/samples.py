"""Labelled inputs to analyse a network on: one subvolume of each of some cases."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import UNLABELLED
from condseg_jax.data import sampling
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.plan import Plan


class Sample(NamedTuple):
  """An input of the network.

  Attributes:
    id: of the case.
    image: normalised, [*subvolume, C].
    masks: three-valued, [*subvolume, K]; unlabelled where the case does not annotate the class.
    annotated: ids of the classes that the case annotates.
  """

  id: str
  image: np.ndarray
  masks: np.ndarray
  annotated: tuple[int, ...]


def read_samples(stores: Sequence[Store], table: ClassTable, plan: Plan, count: int,
                 split: str = "") -> tuple[list[Sample], str]:
  """Some cases, evenly spread over those of a split.

  Where some cases annotate all classes of the network, no others are taken; otherwise every dataset
  gives its share.

  Args:
    stores: at the spacing of the plan.
    table: classes of the network.
    plan: subvolume and normalisation.
    count: of the cases, at most.
    split: when empty `val` where there is a case of it, else `test`, else `train`.

  Returns:
    The samples, those of several datasets in turn, and the split they are of.

  Raises:
    InputError: no case of that split annotates a class of the network.
  """
  present = {case.split for store in stores for case in store.cases}
  taken = split or next((s for s in ("val", "test") if s in present), "train")
  datasets = sampling.datasets(stores, taken)
  known = [len(set(d.annotated) & set(table.names)) for d in datasets]
  if not any(known):
    raise InputError(", ".join(str(s.root) for s in stores), "annotates no class of this network "
                     f"in the split {taken!r}", f"the network knows {', '.join(table.names)}")
  most = len(table) if len(table) in known else 1
  datasets = [d for d, n in zip(datasets, known, strict=True) if n >= most]
  turns = _in_turn([range(len(d.cases)) for d in datasets])[:count]
  shares = [sum(number == i for number, _ in turns) for i in range(len(datasets))]
  spread = [_spread(d, share) for d, share in zip(datasets, shares, strict=True)]
  chosen = [pair for _, pair in _in_turn(spread)]
  return [_read(store, case, table, plan) for store, case in chosen], taken


def centred_start(length: int, size: int, centre: float) -> int:
  """First index of a window of `size` around a centre, inside where the axis is long enough.

  A window that is longer than the axis has the axis in its middle.
  """
  if size >= length:
    return -((size - length) // 2)
  return int(np.clip(round(centre) - size // 2, 0, length - size))


def _in_turn(lists: Sequence[Sequence]) -> list[tuple[int, object]]:
  """(Number of the list, item): the first of every list, then the second, …"""
  longest = max(map(len, lists), default=0)
  return [(i, items[n]) for n in range(longest) for i, items in enumerate(lists) if n < len(items)]


def _spread(dataset: sampling.Dataset, count: int) -> list[tuple[Store, Case]]:
  places = np.linspace(0, len(dataset.cases) - 1, count).round().astype(int)
  return [(dataset.store, dataset.cases[i]) for i in places]


def _read(store: Store, case: Case, table: ClassTable, plan: Plan) -> Sample:
  """The subvolume around the structures of a case, beyond its edge as in training."""
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
