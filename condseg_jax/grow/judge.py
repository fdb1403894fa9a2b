"""Judges a level of growth: what new classes reach, and what the classes before them lose.

Known classes are judged by the masks of old cases that the network has not seen, where they are at
hand. Else the masks that the network before finds in the new images take the place of the truth,
and its Dice is 1: the measure is agreement. Voxels of annotated classes that exclude a class are
unlabelled in these masks, so that giving them up is no loss.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.evaluate.cases import Labelled
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.cases import stored_cases
from condseg_jax.evaluate.run import evaluate
from condseg_jax.evaluate.scores import bootstrap_ci
from condseg_jax.grow.growth import Growth
from condseg_jax.predictor import Predictor

TOLERANCE = 0.005  # of Dice, that a known class may lose

# What a class is judged by → class → case → Dice.
Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


class Row(NamedTuple):
  """A class before and after.

  Attributes:
    name: the class.
    by: `new`, masks of new cases; `old`, masks of old cases; `agreement` with the network before.
    cases: number of cases.
    before: mean Dice before; None for a new class.
    after: mean Dice after.
    low, high: 95 % interval of the difference, a paired bootstrap over cases; of `after` for a new
      class.
  """

  name: str
  by: str
  cases: int
  before: float | None
  after: float
  low: float
  high: float

  @property
  def loss(self) -> float:
    """The Dice that was lost; negative for a gain."""
    return 0.0 if self.before is None else self.before - self.after


@dataclasses.dataclass(frozen=True)
class Judge:
  """The cases that networks are compared on.

  Attributes:
    cases: what classes are judged by → its cases.
    names: the same → the classes.
  """

  cases: Mapping[str, Sequence[LabelledCase]]
  names: Mapping[str, tuple[str, ...]]

  @classmethod
  def of(cls, growth: Growth, before: Predictor) -> "Judge":
    """Returns the judge of a growth; `before` is the network before it."""
    new, old = stored_cases(growth.held_out), stored_cases(growth.old_held_out)
    by_truth = {name for case in old for name in case.annotated}
    rest = tuple(name for name in growth.old if name not in by_truth)
    agreement = [_agreement(case, before, growth, rest) for case in new] if rest else []
    return cls({"new": new, "old": old, "agreement": agreement},
               {"new": (*growth.known, *growth.new), "agreement": rest,
                "old": tuple(n for n in growth.record.table.names if n in by_truth)})

  def scores(self, predictor: Predictor) -> Scores:
    """Scores a network on all cases; a class that is absent from a case has no score there."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for by, cases in self.cases.items():
      out[by] = {name: {} for name in self.names[by]}
      for row in evaluate(predictor, cases, fast=True):
        dice = float(row.metrics["dice"])
        if row.class_name in out[by] and not math.isnan(dice):
          out[by][row.class_name][row.case] = dice
    return out


def compared(before: Scores, after: Scores) -> list[Row]:
  """Returns a row for every class and every way of judging it for which there is a case."""
  rows = []
  for by, classes in after.items():
    for name, dice in classes.items():
      known = before[by].get(name, {})
      values = [(known.get(case, math.nan), value) for case, value in sorted(dice.items())]
      if known:
        values = [pair for pair in values if not math.isnan(pair[0])]
      if not values:
        continue
      a, b = np.array(values).T
      low, high = bootstrap_ci(b - a if known else b)
      rows.append(Row(name, by, len(values), float(a.mean()) if known else None, float(b.mean()),
                      low, high))
  return rows


def worst(rows: Sequence[Row]) -> Row | None:
  """Returns the row of the largest loss above `TOLERANCE`, or None without one."""
  return max((row for row in rows if row.loss > TOLERANCE), key=lambda row: row.loss, default=None)


def reached(rows: Sequence[Row], *, before: bool = False) -> float:
  """Returns the mean Dice of the classes of the new data; before growth that of new ones is 0."""
  dice = [(row.before or 0.0) if before else row.after for row in rows if row.by == "new"]
  return float(np.mean(dice)) if dice else 0.0


def _agreement(case: LabelledCase, before: Predictor, growth: Growth,
               names: Sequence[str]) -> LabelledCase:
  """Returns a new case with the masks that the network before finds of some classes."""
  table = growth.table
  exclusive = table.exclusive

  predicted = functools.cache(lambda: before.predict(case.read()[0]))  # keeps a label map

  def read() -> Labelled:
    volume, truth = case.read()
    masks = {}
    for name in names:
      mask = predicted().masks[name].astype(np.uint8)
      for other, annotated in truth.items():
        if exclusive[table.index(name), table.index(other)]:
          mask[annotated == POSITIVE] = UNLABELLED
      masks[name] = mask
    return volume, masks

  return LabelledCase(case.id, read, tuple(names))
