"""Smooth random fields, for deformations, rough surfaces, bias fields and clouds."""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

# Per axis: sd of a sum of cubic B-splines with coefficients of unit sd, averaged over phases.
_SD = 0.692


def smooth_field(
  rng: np.random.Generator, shape: Sequence[int], step: Sequence[float]
) -> np.ndarray:
  """Returns a random float32 field of a shape, with mean 0 and sd about 1.

  The field is a sum of tensor-product cubic B-splines with knots `step` voxels apart along each
  axis. Four taps per axis instead of matrix products are faster at these sizes, and bit-identical
  on every machine.
  """
  return smooth_rows(rng, shape, step)(slice(0, shape[0]))


def smooth_rows(
  rng: np.random.Generator, shape: Sequence[int], step: Sequence[float]
) -> Callable[[slice], np.ndarray]:
  """Returns a function that computes rows of `smooth_field`, without the whole field in memory."""
  knots = [int((n - 1) // s) + 4 for n, s in zip(shape, step, strict=True)]
  field = rng.standard_normal(knots, dtype=np.float32)
  for axis in reversed(range(1, len(knots))):  # the outermost last: its rows are contiguous
    field = _spline(field, axis, np.arange(shape[axis]) / step[axis])
  scale = np.float32(_SD ** len(knots))
  return lambda rows: _spline(field, 0, np.arange(rows.start, rows.stop) / step[0]) / scale


def _spline(field: np.ndarray, axis: int, position: np.ndarray) -> np.ndarray:
  index, t = np.divmod(position, 1)
  weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
  column = [-1 if a == axis else 1 for a in range(field.ndim)]
  return sum(np.take(field, index.astype(int) + tap, axis)
             * (w / 6).astype(np.float32).reshape(column) for tap, w in enumerate(weights))
