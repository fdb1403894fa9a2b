"""The best class on the network's grid to a label map on the grid of the image.

    label(x) = argmax_k R[p·1(class = k)](x)  where  R[p](x) ≥ threshold,  else background

R is linear interpolation and p the probability of the best class of a voxel. Where that class is
the same all around x, this is the interpolation of its own probability; between two classes that
touch, the larger share decides, and no gap opens. With equal grids nothing is interpolated.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import math

import numpy as np
from scipy import ndimage

from condseg_jax import resample

WORK_VOXELS = 1 << 22  # of a slab of the result, of which about four float32 arrays exist


def label_map(best: np.ndarray, score: np.ndarray, shape: Sequence[int],
              threshold: float) -> np.ndarray:
  """Resamples what `fuse.best_class` returns.

  One class and one slab at a time, inside of the box of the class: beyond the result and the
  arguments, memory is that of a slab.

  Args:
    best: class id + 1 of every voxel; changed.
    score: its probability; changed.
    shape: of the result, over the same field of view.
    threshold: probability from which a voxel belongs to a class.

  Returns:
    Class id + 1, or 0; [*shape] in the dtype of `best`.
  """
  _forget_far_background(best, score, threshold)
  old, shape = best.shape, tuple(shape)
  if old == shape:
    best[score < threshold] = 0
    return best
  boxes = [(value, box) for value, box in enumerate(ndimage.find_objects(best), 1) if box]
  out = np.zeros(shape, best.dtype)
  taps = [resample.linear_taps(n, m) for n, m in zip(old, shape, strict=True)]
  for rows in _slabs(shape):
    source = resample.source_rows(old, shape, rows)
    inside = resample.resampled_rows(score[source], shape, 1, rows, old) >= threshold
    if inside.any():
      slab = [tuple(t[rows] for t in taps[0]), *taps[1:]]
      out[rows] = _largest_share(best, score, boxes, slab, inside)
  return out


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
  """Rows of a result, as many at a time as `WORK_VOXELS` allows."""
  count = max(1, WORK_VOXELS // math.prod(shape[1:]))
  for first in range(0, shape[0], count):
    yield slice(first, min(first + count, shape[0]))


def _forget_far_background(best: np.ndarray, score: np.ndarray, threshold: float) -> None:
  """Sets to 0 what no voxel of the result can need: all taps of one lie next to each other.

  The boxes of the classes become those of the structures.
  """
  near = score >= threshold
  for axis in range(near.ndim):
    view = np.moveaxis(near, axis, 0)
    grown = view.copy()
    grown[1:] |= view[:-1]
    grown[:-1] |= view[1:]
    view[:] = grown
  best[~near] = 0
  score[~near] = 0


def _largest_share(best, score, boxes, taps, inside) -> np.ndarray:
  out = np.zeros(inside.shape, best.dtype)
  most = np.zeros(inside.shape, np.float32)
  for value, box in boxes:
    cropped = [resample.cropped_taps(*pair) for pair in zip(taps, box, strict=True)]
    if any(target.start >= target.stop for _, target, _ in cropped):
      continue  # not in these rows, or a thin structure between two of their centres
    source = tuple(source for source, _, _ in cropped)
    target = tuple(target for _, target, _ in cropped)
    share = np.where(best[source] == value, score[source], np.float32(0))
    for axis in sorted(range(share.ndim), key=lambda a: cropped[a][1].stop - cropped[a][1].start):
      share = resample.linear_pass(share, axis, cropped[axis][2])
    wins = share > most[target]
    np.maximum(most[target], share, out=most[target])
    out[target][wins] = value
  out[~inside] = 0
  return out


def mask(rows_of: Callable[[slice], np.ndarray], old: Sequence[int], shape: Sequence[int],
         threshold: float) -> np.ndarray:
  """Where the probability of one class, interpolated, reaches the threshold: bool [*shape].

  Args:
    rows_of: some rows of the probability on the network's grid, float32.
    old: spatial shape of that grid.
    shape: of the result, over the same field of view.
    threshold: of the probability.
  """
  old, shape = tuple(old), tuple(shape)
  out = np.zeros(shape, bool)
  for rows in _slabs(shape):
    part = rows_of(resample.source_rows(old, shape, rows))
    found = resample.resampled_rows(part, shape, 1, rows, old)
    np.greater_equal(found, threshold, out=out[rows])
  return out
