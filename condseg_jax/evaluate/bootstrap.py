"""What bootstraps of ratios share: ratios and means that may be undefined, percentile intervals."""

import numpy as np

LEVEL = 0.95


def ratio(top, bottom) -> np.ndarray:
  """Returns top / bottom in float64; nan where `bottom` is 0."""
  top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
  return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def mean_of_known(values, axis=None):
  """Returns the mean of the values that are not nan; nan if there are none."""
  values = np.asarray(values, np.float64)
  known = ~np.isnan(values)
  mean = ratio(np.where(known, values, 0).sum(axis), known.sum(axis))
  return float(mean) if np.ndim(mean) == 0 else mean


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
  """Returns the percentile interval of replicates that are not nan; (nan, nan) if all are."""
  values = values[~np.isnan(values)]
  if not len(values):
    return float("nan"), float("nan")
  low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
  return float(low), float(high)
