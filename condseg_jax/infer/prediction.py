"""The result of a prediction: label map, masks on the native grid of the image, quality."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume
from condseg_jax.geometry import voxel_ml
from condseg_jax.infer import to_native
from condseg_jax.infer.fuse import ranks
from condseg_jax.infer.postprocess import clean
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.infer.postprocess import drop_detached
from condseg_jax.infer.probability_store import ProbabilityStore
from condseg_jax.infer.sliding_window import Slab

# Predicted Dice → rating from there on.
RATINGS = ((0.8, "good"), (0.5, "doubtful"), (-math.inf, "poor"))


def rating(predicted_dice: float) -> str:
  """Returns in a word how good a structure with a predicted Dice is."""
  return next(word for low, word in RATINGS if predicted_dice >= low)


class Masks(Mapping):
  """Class → bool mask on the grid of the file, computed on access."""

  def __init__(self, names: Sequence[str], make: Callable[[str], np.ndarray]):
    self._names, self._make = tuple(names), make

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._names:
      raise KeyError(name)
    return self._make(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The segmentation of a volume, on the grid of the file it was read from.

  Attributes:
    label: label map, class id + 1, 0 for background.
    names: class → its value in the label map, for the requested classes.
    masks: class → bool mask, computed on access; masks may overlap with independent fusion.
    confidence: class → mean probability, on the network's grid, of the voxels assigned to it; None
      if there are none.
    quality: class → see `quality`, for every class of which voxels were found.
    uncertainty: entropy of every voxel in bits, float16 (see `infer.fuse.Entropy`), if requested.
  """

  label: Volume
  names: Mapping[str, int]
  masks: Mapping[str, np.ndarray]
  confidence: Mapping[str, float | None]
  quality: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  uncertainty: Volume | None = None


def native_label(best: np.ndarray, score: np.ndarray, geometry: Geometry, threshold: float,
                 within: Mapping[int, int], filters: Mapping[int, ComponentFilter]) -> Volume:
  """Makes the label map on the native grid, without detached parts and filtered components.

  Args:
    best: class id + 1 per voxel of the network's grid, see `fuse.best_class`; overwritten.
    score: its probability; overwritten.
    geometry: the native grid.
    threshold: probability from which a voxel belongs to a class.
    within: part → whole, as class ids.
    filters: label value → filter of its components.
  """
  label = to_native.label_map(best, score, canonical_geometry(geometry).shape, threshold)
  rank = ranks(within)
  for part in sorted(rank, key=rank.get, reverse=True):
    drop_detached(label, part + 1, within[part] + 1)
  for value, component_filter in filters.items():
    clean(label, value, component_filter, voxel_ml(geometry.affine))
  return from_canonical(label, geometry)


def native_map(values: np.ndarray, geometry: Geometry) -> Volume:
  """Interpolates a value of every voxel of the network's grid to the native grid, as float16."""
  shape = canonical_geometry(geometry).shape
  rows_of = lambda rows: values[rows]
  return from_canonical(to_native.resampled(rows_of, values.shape, shape, np.float16), geometry)


def stored_masks(store: ProbabilityStore, names: Mapping[str, int], geometry: Geometry,
                 threshold: float, filters: Mapping[int, ComponentFilter]) -> Masks:
  """Makes masks that may overlap, each computed from its stored probability on access.

  Args:
    store: probabilities on the network's grid.
    names: class → class id + 1.
    geometry: the native grid.
    threshold: probability from which a voxel belongs to a class.
    filters: label value → filter of its components.
  """
  shape = canonical_geometry(geometry).shape

  def make(name):
    value = names[name]
    mask = to_native.mask(lambda rows: store.rows(value - 1, rows), store.shape, shape, threshold)
    if value in filters:
      clean(mask, True, filters[value], voxel_ml(geometry.affine))
    return from_canonical(mask, geometry).array

  return Masks(names, make)


# --- Quality, judged without a reference. Soft Dice confidence (arXiv:2402.10665) compares the
# probability p of a class with its own mask ŷ = (p ≥ 0.5), before calibration and before the
# classes compete, so that it does not depend on the settings of the prediction:
#
#     SDC = 2 Σ p ŷ / (Σ p + Σ ŷ)
#
# A map fitted on cross-validated cases (`evaluate.quality`) turns it into a predicted Dice.
LEVEL = 0.9  # share of cases whose Dice is above the lower bound


@dataclasses.dataclass(frozen=True)
class DiceMap:
  """What soft Dice confidence says about the Dice of a class.

  Attributes:
    score: soft Dice confidence, ascending.
    dice: the Dice expected there, never falling; linear in between, constant outside.
    shift: from the expected Dice to its lower bound.
    cases: number of cases that it was fitted on.
    error: mean absolute difference of Dice and predicted Dice over unseen cases.
    correlation: Spearman's, of score and Dice; None if one of them is constant.
  """

  score: Sequence[float]
  dice: Sequence[float]
  shift: float
  cases: int
  error: float = 0.0
  correlation: float | None = None

  def __call__(self, score) -> np.ndarray:
    """Returns the expected Dice."""
    return np.interp(score, self.score, self.dice)

  def bound(self, score) -> np.ndarray:
    """Returns the lower bound, which `LEVEL` of all cases like those fitted on exceed."""
    return np.clip(self(score) + self.shift, 0, 1)


class SoftDice:
  """Soft Dice confidence of every class, an observer of a prediction."""

  def __init__(self) -> None:
    self._sums: dict[int, np.ndarray] = {}

  def __call__(self, slab: Slab) -> None:
    """Adds a slab."""
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      sums = self._sums.setdefault(class_id, np.zeros(3))
      for row in plane:  # row by row, to save memory
        inside = row >= 0.5
        sums += (row.sum(dtype=np.float64), np.count_nonzero(inside),
                 row[inside].sum(dtype=np.float64))

  def score(self, class_id: int) -> float:
    """Returns the confidence, 0 to 1; 0 without a voxel of 0.5 or more."""
    probability, size, within = self._sums[class_id]
    return float(2 * within / (probability + size)) if size else 0.0


class Agreement:
  """Dice of the masks of an ensemble's members with each other, a watcher of their windows.

  Of all pairs together: if n(x) of M members find a class at x, the pairs have Σ n (n - 1) / 2
  voxels in common, of sizes (M - 1) Σ n in sum. Overlaps of windows count as often as they are
  computed.

  Args:
    members: M.
  """

  def __init__(self, members: int):
    self._members = members
    self._sums: dict[int, np.ndarray] = {}
    self._open: dict[tuple, tuple[int, np.ndarray]] = {}  # until all members have voted

  def __call__(self, start: Sequence[int], class_id: int, probability: np.ndarray) -> None:
    """Adds the vote of a member; those on a window may come in any order."""
    if self._members == 1:
      return
    key = class_id, tuple(start)
    voted, votes = self._open.pop(key, (0, np.zeros(probability.shape, np.uint8)))
    votes += probability >= 0.5
    if voted + 1 < self._members:
      self._open[key] = voted + 1, votes
      return
    times = np.bincount(votes.ravel(), minlength=self._members + 1)
    n = np.arange(self._members + 1)
    sums = self._sums.setdefault(class_id, np.zeros(2))
    sums += (times @ (n * (n - 1)), (self._members - 1) * (times @ n))

  def dice(self, class_id: int) -> float | None:
    """Returns the pairwise Dice, 0 to 1; None for a single member, or if none finds the class."""
    common, sizes = self._sums.get(class_id, (0.0, 0.0))
    return float(common / sizes) if sizes else None


def quality(score: float, members: float | None, dice_map: Mapping | None) -> dict[str, float]:
  """Returns the measures of a structure: `soft_dice`, of an ensemble `member_dice`, and with a map
  `predicted_dice` and its lower bound `dice_bound`.

  Args:
    score: soft Dice confidence.
    members: pairwise Dice of the members of an ensemble.
    dice_map: fields of the `DiceMap` of the class, if there is one.
  """
  entry = {"soft_dice": score} | ({} if members is None else {"member_dice": members})
  if dice_map is not None:
    found = DiceMap(**dice_map)
    entry |= {"predicted_dice": float(found(score)), "dice_bound": float(found.bound(score))}
  return entry
