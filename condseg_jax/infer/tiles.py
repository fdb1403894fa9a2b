"""The windows that cover a volume, and how much each of their voxels counts. Host side, no jax."""

from collections.abc import Sequence
import itertools
import math

import numpy as np


def window_starts(shape: Sequence[int], window: Sequence[int],
                  step: float = 0.5) -> list[tuple[int, ...]]:
  """First indices of windows that cover a volume evenly, the first axis slowest.

  Args:
    shape: of the volume, no axis shorter than the window's.
    window: shape of a window.
    step: distance of neighbouring windows as a part of the window, at most.

  Returns:
    One tuple per window; the first begins at 0, the last ends at the volume's end.
  """
  axes = []
  for length, size in zip(shape, window, strict=True):
    if length < size:
      raise ValueError(f"volume {tuple(shape)} is smaller than the window {tuple(window)}")
    count = math.ceil((length - size) / max(size * step, 1)) + 1
    axes.append([round(x) for x in np.linspace(0, length - size, count)])
  return list(itertools.product(*axes))


def gaussian_weights(window: Sequence[int]) -> np.ndarray:
  """Weight of a window's voxels: a Gaussian with σ = window / 8 (Isensee et al. 2021), peak 1.

  Never below 1e-3, so that a corner that only one window covers keeps its score.
  """
  weights = np.ones((), np.float32)
  for size in window:
    x = np.arange(size) - (size - 1) / 2
    weights = np.multiply.outer(weights, np.exp(-0.5 * (x / (size / 8)) ** 2))
  return np.maximum(weights, 1e-3).astype(np.float32)
