"""The quality of a structure, judged without a reference.

Soft Dice confidence (arXiv:2402.10665) compares the probability p of a class with its own mask
ŷ = (p ≥ 0.5), before calibration and before the classes compete, so that it does not depend on the
settings of the prediction:

    SDC = 2 Σ p ŷ / (Σ p + Σ ŷ)

A map that was fitted on cross-validated cases (`evaluate.quality`) turns it into a predicted Dice.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax.infer.sliding_window import Slab

LEVEL = 0.9  # share of cases whose Dice is above the lower bound
Observer = Callable[[Slab], None]


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


def observed(slabs: Iterable[Slab], observers: Sequence[Observer]) -> Iterator[Slab]:
  """Shows slabs to observers, which must not change them, and passes them on."""
  for slab in slabs:
    for observer in observers:
      observer(slab)
    yield slab


def quality(score: float, dice_map: Mapping | None) -> dict[str, float]:
  """Returns the measures of a structure.

  Args:
    score: its soft Dice confidence.
    dice_map: fields of the `DiceMap` of its class, if there is one.
  """
  entry = {"soft_dice": score}
  if dice_map is not None:
    found = DiceMap(**dice_map)
    entry |= {"predicted_dice": float(found(score)), "dice_bound": float(found.bound(score))}
  return entry
