"""The windows that cover a volume, and how much each of their voxels counts. Host side, no jax."""

from collections.abc import Sequence
import itertools
import math

import numpy as np


def axis_starts(length: int, size: int, step: float = 0.5) -> list[int]:
  """First indices of windows that cover an axis evenly; the last window ends at its end.

  Args:
    length: of the axis, not shorter than the window.
    size: of the window.
    step: distance of neighbouring windows as a part of the window, at most.
  """
  if length < size:
    raise ValueError(f"an axis of {length} voxels is shorter than its window of {size}")
  count = math.ceil((length - size) / max(size * step, 1)) + 1
  return [round(x) for x in np.linspace(0, length - size, count)]


def layers(shape: Sequence[int], window: Sequence[int], step: float = 0.5,
           axis: int = 0) -> list[list[tuple[int, ...]]]:
  """First indices of all windows of a volume, in layers along one axis.

  Args:
    shape: of the volume, no axis shorter than the window's.
    window: shape of a window.
    step: see `axis_starts`.
    axis: windows of one layer begin at one index of it; layers come in ascending order.
  """
  starts = [axis_starts(n, w, step) for n, w in zip(shape, window, strict=True)]
  return [list(itertools.product(*starts[:axis], [first], *starts[axis + 1:]))
          for first in starts[axis]]


def gaussian_weights(window: Sequence[int]) -> np.ndarray:
  """Weight of a window's voxels: a Gaussian with σ = window / 8 (Isensee et al. 2021), peak 1.

  Never below 1e-3, so that a corner that only one window covers keeps its score.
  """
  weights = np.ones((), np.float32)
  for size in window:
    x = np.arange(size) - (size - 1) / 2
    weights = np.multiply.outer(weights, np.exp(-0.5 * (x / (size / 8)) ** 2))
  return np.maximum(weights, 1e-3).astype(np.float32)


def surround(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
  """Voxels to add before and after each axis of a volume that is smaller than the window."""
  missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
  return [(m // 2, m - m // 2) for m in missing]
