"""Fits what soft Dice confidence says about Dice, with a lower bound, on cross-validated cases."""

from collections.abc import Sequence
import math

import numpy as np
from scipy import optimize
from scipy import stats

from condseg_jax.infer.prediction import DiceMap
from condseg_jax.infer.prediction import LEVEL


def fit(scores: Sequence[float], dice: Sequence[float], members: Sequence[int],
        level: float = LEVEL) -> DiceMap | None:
  """Fits the map of a class.

  The expected Dice is the isotonic regression of Dice on the score. Its lower bound is conformal:
  the Dice of each case is compared with the map of the cases of the other members, and the bound
  lies as far below as the ⌊(1 - level)(n + 1)⌋-th lowest of these n differences. If new cases are
  like these (exchangeable), a share of about `level` has a higher Dice.

  Args:
    scores: soft Dice confidence of every case in which the class was found.
    dice: its Dice.
    members: the member that did not see it.
    level: share of cases above the bound.

  Returns:
    The map; None for too few cases, 9 at a level of 0.9, or a single member.
  """
  x, y, member_N = np.asarray(scores, float), np.asarray(dice, float), np.asarray(members)
  rank = math.floor((1 - level) * (len(x) + 1) + 1e-9)
  if rank < 1 or len(np.unique(member_N)) < 2:
    return None
  difference = np.empty(len(x))
  for member in np.unique(member_N):
    held_out = member_N == member
    difference[held_out] = y[held_out] - np.interp(x[held_out], *isotonic(x[~held_out],
                                                                          y[~held_out]))
  knots, expected = isotonic(x, y)
  constant = np.ptp(x) == 0 or np.ptp(y) == 0
  return DiceMap(knots.tolist(), expected.tolist(), float(np.sort(difference)[rank - 1]), len(x),
                 float(np.abs(difference).mean()),
                 None if constant else float(stats.spearmanr(x, y).statistic))


def isotonic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Computes the isotonic regression of y on x.

  Returns:
    Ascending x and non-decreasing y, for interpolation; without the inner points of constant runs.
  """
  knots, place, count = np.unique(x, return_inverse=True, return_counts=True)
  mean = np.bincount(place, y) / count
  fitted = optimize.isotonic_regression(mean, weights=count).x
  inner = np.zeros(len(knots), bool)
  inner[1:-1] = (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:])
  return knots[~inner], fitted[~inner]
