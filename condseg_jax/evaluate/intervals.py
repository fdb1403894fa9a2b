"""How far a mean over few cases can be trusted."""

from collections.abc import Sequence

import numpy as np

# Resamples drawn at a time hold at most this many numbers, so that memory does not grow with n.
_CHUNK = 4_000_000


def bootstrap_ci(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000,
                 level: float = 0.95) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean over cases (Efron & Tibshirani 1993, chapter 13).

  The cases are drawn with replacement, so the interval speaks of other cases from the same
  population and not of another training run.

  Args:
    values: one value per case; nan (a case left out) is ignored.
    seed: seed of the draws; the order of the values has no influence.
    resamples: number of bootstrap means.
    level: probability mass of the interval, between 0 and 1.

  Returns:
    (lo, hi); (nan, nan) without a value, the value twice for a single one.
  """
  if not 0 < level < 1:
    raise ValueError(f"a level lies between 0 and 1, got {level}")
  values = np.asarray(values, np.float64).ravel()
  values = np.sort(values[~np.isnan(values)])
  if values.size == 0:
    return float("nan"), float("nan")
  if values[0] == values[-1]:
    return float(values[0]), float(values[0])  # exactly, where a mean would round
  rng, means = np.random.default_rng(seed), np.empty(resamples)
  rows = max(1, _CHUNK // values.size)
  for start in range(0, resamples, rows):
    part = means[start:start + rows]
    part[:] = values[rng.integers(values.size, size=(part.size, values.size))].mean(axis=1)
  lo, hi = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
  return float(lo), float(hi)
