"""Smooth random fields: deformations, rough surfaces, bias, clouds."""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

_SD = 0.692  # of a sum of cubic B-splines with coefficients of unit sd, per axis, mean over phases


def smooth_field(
  rng: np.random.Generator, shape: Sequence[int], step: Sequence[float]
) -> np.ndarray:
  """A float32 field of the given shape, mean 0 and sd about 1.

  A sum of tensor-product cubic B-splines whose knots lie `step` voxels apart on each axis. Written
  with four taps per axis instead of matrix products: faster at these sizes, and the same bits on
  every machine.
  """
  return smooth_rows(rng, shape, step)(slice(0, shape[0]))


def smooth_rows(
  rng: np.random.Generator, shape: Sequence[int], step: Sequence[float]
) -> Callable[[slice], np.ndarray]:
  """The field of `smooth_field`, some rows at a time; in memory are its knots along them."""
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
