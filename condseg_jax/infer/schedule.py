"""Schedules windows and classes so that a volume fits a memory budget.

    slab of one layer of windows, per class  ──  all classes at once if the budget allows
                                             ├─  else fewer classes, then windows, per call
                                             └─  then passes of fewer classes: each encodes again

Only the slab grows with the number of classes, so the budget decides how many of them share a
pass. Windows are always layered along the axis with the smallest slab, which costs no time.
"""

from collections.abc import Sequence
import itertools
import math
import os
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
  """The order in which one volume is processed.

  Attributes:
    axis: axis along which layers of windows follow each other.
    classes: classes decoded in one pass.
    passes: passes over all windows.
    windows: windows of one pass.
    window_batch: windows per call.
    at_once: classes per call of `decode`.
    step: distance of neighbouring windows as a fraction of the window.
    bytes: predicted peak host memory, beyond the volume as read.
    whole_bytes: the same for a single pass.
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
    """Predicts the time for all windows.

    Args:
      encode: seconds per call for a batch of windows.
      decode: seconds per class of such a batch.
      classes: total number of classes.
      passes: number of passes; that of the schedule when None.
    """
    batches = math.ceil(self.windows / self.window_batch)
    return batches * ((passes or self.passes) * encode + classes * decode)


def default_budget() -> int:
  """Returns a quarter of the machine's memory, at most 4 GiB, in bytes."""
  return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4, 4 << 30)


def make_schedule(shape: Sequence[int], window: Sequence[int], classes: int, *, step: float = 0.5,
                  window_batch: Sequence[int] = (1,), budget: int | None = None, channels: int = 1,
                  at_once: Sequence[int] = (16,), call_bytes: int = 0,
                  voxel_bytes: int = 5) -> Schedule:
  """Makes the schedule of a volume.

  Args:
    shape: spatial shape on the network's grid.
    window: shape of a window.
    classes: total number of classes.
    step: see `axis_starts`.
    window_batch: windows per call, in order of preference; later entries are used when memory is
      short.
    budget: memory in bytes; `default_budget` when None. If even one class per pass exceeds it, that
      schedule is returned anyway.
    channels: of the image.
    at_once: classes per call of `decode`, in descending order: fewer need less memory and share
      less work.
    call_bytes: memory of the network for a batch of windows; 0 on an accelerator.
    voxel_bytes: bytes kept per voxel of the result (by default label and best score).
  """
  budget = default_budget() if budget is None else budget
  shape = tuple(max(n, w) for n, w in zip(shape, window, strict=True))
  voxels = math.prod(shape)
  slab_voxels = [w * voxels // n for n, w in zip(shape, window, strict=True)]
  axis = min(range(len(shape)), key=lambda a: slab_voxels[a])
  slab_bytes = 4 * slab_voxels[axis]

  def fixed_bytes(size: int, batch: int) -> int:
    """Memory that does not depend on the number of classes in a pass."""
    # Image, result, one slab of weights beside those of the classes, and the output of one call
    # while that of the next is computed.
    output = 2 * 4 * size * batch * math.prod(window)
    return voxels * (4 * channels + voxel_bytes) + slab_bytes + call_bytes + output

  def classes_per_pass(size: int, batch: int) -> int:
    """The classes whose slabs fit the budget; at least one."""
    return max(1, min(classes, (budget - fixed_bytes(size, batch)) // slab_bytes))

  sizes = [min(size, classes) for size in at_once]
  calls = [*((size, window_batch[0]) for size in sizes),
           *((sizes[-1], batch) for batch in window_batch[1:])]
  # The first call whose classes all fit into a pass, else the smallest.
  size, batch = next((call for call in calls if classes_per_pass(*call) >= call[0]), calls[-1])
  passes = math.ceil(classes / classes_per_pass(size, batch))
  per_pass = math.ceil(classes / passes)
  windows = math.prod(len(axis_starts(n, w, step))
                      for n, w in zip(shape, window, strict=True))
  return Schedule(axis, per_pass, passes, windows, batch, size, step,
                  fixed_bytes(size, batch) + per_pass * slab_bytes,
                  fixed_bytes(*calls[0]) + classes * slab_bytes)


# --- The windows that cover a volume, and the weight of each of their voxels. Host side, no jax.
def axis_starts(length: int, size: int, step: float = 0.5) -> list[int]:
  """Returns the first indices of windows that cover an axis evenly, up to its end.

  Args:
    length: of the axis, at least that of the window.
    size: of the window.
    step: largest distance of neighbouring windows as a fraction of the window.
  """
  if length < size:
    raise ValueError(f"an axis of {length} voxels is shorter than its window of {size}")
  count = math.ceil((length - size) / max(size * step, 1)) + 1
  return [round(x) for x in np.linspace(0, length - size, count)]


def layers(shape: Sequence[int], window: Sequence[int], step: float = 0.5,
           axis: int = 0) -> list[list[tuple[int, ...]]]:
  """Returns the first indices of all windows of a volume, grouped into layers along one axis.

  Args:
    shape: of the volume, at least that of the window.
    window: shape of a window.
    step: see `axis_starts`.
    axis: axis along which the windows of a layer start at the same index; layers are in ascending
      order.
  """
  starts = [axis_starts(n, w, step) for n, w in zip(shape, window, strict=True)]
  return [list(itertools.product(*starts[:axis], [first], *starts[axis + 1:]))
          for first in starts[axis]]


def gaussian_weights(window: Sequence[int]) -> np.ndarray:
  """Returns the weights of a window: a Gaussian with σ = window / 8 (Isensee et al. 2021), peak 1.

  Weights are at least 1e-3, so that a corner covered by a single window keeps its score.
  """
  weights = np.ones((), np.float32)
  for size in window:
    x = np.arange(size) - (size - 1) / 2
    weights = np.multiply.outer(weights, np.exp(-0.5 * (x / (size / 8)) ** 2))
  return np.maximum(weights, 1e-3).astype(np.float32)


def pad_to_window(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
  """Returns the voxels to add before and after each axis that is shorter than the window."""
  missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
  return [(m // 2, m - m // 2) for m in missing]
