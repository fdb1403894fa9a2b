"""In which order windows and classes are worked off, so that a volume fits a memory budget.

    slab of one layer of windows, per class  ──  all classes at once where the budget allows
                                             ├─  else fewer classes, then windows, for each call
                                             └─  then passes of fewer classes: each encodes anew

What grows with the number of classes is the slab alone, so the budget decides how many of them
share a pass. The axis along which a slab is thinnest costs nothing and is always taken.
"""

from collections.abc import Sequence
import itertools
import math
import os
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
  """How one volume is worked off.

  Attributes:
    axis: along which layers of windows follow each other.
    classes: decoded in one pass.
    passes: over all windows.
    windows: of one pass.
    window_batch: windows per call.
    at_once: classes per call of `decode`.
    step: distance of neighbouring windows as a part of the window.
    bytes: predicted peak on the host, beyond the volume as it was read.
    whole_bytes: the same if there were one pass only.
  """

  axis: int
  classes: int
  passes: int
  windows: int
  window_batch: int
  at_once: int
  step: float
  bytes: int
  whole_bytes: int

  def seconds(self, encode: float, decode: float, classes: int,
              passes: int | None = None) -> float:
    """Predicted time of all windows.

    Args:
      encode: seconds of a call for a batch of windows.
      decode: seconds for a class of such a batch.
      classes: wanted in all.
      passes: instead of those of the schedule.
    """
    batches = math.ceil(self.windows / self.window_batch)
    return batches * ((passes or self.passes) * encode + classes * decode)


def default_budget() -> int:
  """A quarter of the machine's memory, at most 4 GiB."""
  return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4, 4 << 30)


def make_schedule(shape: Sequence[int], window: Sequence[int], classes: int, *, step: float = 0.5,
         window_batch: Sequence[int] = (1,), budget: int | None = None, channels: int = 1,
         at_once: Sequence[int] = (16,), call_bytes: int = 0,
         voxel_bytes: int = 5) -> Schedule:
  """The schedule of a volume.

  Args:
    shape: spatial, on the network's grid.
    window: shape of a window.
    classes: wanted in all.
    step: see `axis_starts`.
    window_batch: windows per call, and fewer where memory is short.
    budget: bytes for all that is counted; `default_budget` when None. What does not fit even with
      one class in a pass is taken anyway: there is no smaller way.
    channels: of the image.
    at_once: classes that a call of `decode` can take, most first: fewer need less memory and see
      less of what classes share.
    call_bytes: of the network on a batch of windows; 0 on an accelerator.
    voxel_bytes: kept of every voxel of the result (label and best score by default).
  """
  budget = default_budget() if budget is None else budget
  shape = tuple(max(n, w) for n, w in zip(shape, window, strict=True))
  voxels = math.prod(shape)
  areas = [w * voxels // n for n, w in zip(shape, window, strict=True)]
  axis = min(range(len(shape)), key=lambda a: areas[a])
  slab = 4 * areas[axis]
  whole = None
  sizes = [min(size, classes) for size in at_once]
  for size, batch in ([(size, window_batch[0]) for size in sizes]
                      + [(sizes[-1], batch) for batch in window_batch[1:]]):
    # Image, result, one plane of weights beside those of the classes, and the output of one call
    # while that of the next is computed.
    output = 2 * 4 * size * batch * math.prod(window)
    fixed = voxels * (4 * channels + voxel_bytes) + slab + call_bytes + output
    whole = whole or fixed + classes * slab
    fit = max(1, min(classes, (budget - fixed) // slab))
    if fit >= size:
      break
  passes = math.ceil(classes / fit)
  per_pass = math.ceil(classes / passes)
  windows = math.prod(len(axis_starts(n, w, step))
                      for n, w in zip(shape, window, strict=True))
  return Schedule(axis, per_pass, passes, windows, batch, size, step,
                  fixed + per_pass * slab, whole)


# --- The windows that cover a volume, and how much each of their voxels counts. Host side, no jax.
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
