"""Resamples the best class on the network's grid to a label map on the image's native grid.

    label(x) = argmax_k R[p·1(class = k)](x)  where  R[p](x) ≥ threshold,  else background

R is linear interpolation and p the probability of a voxel's best class. Where that class is the
same all around x, this equals the interpolation of its own probability; between two touching
classes the larger share decides, so that no gap opens. With equal grids nothing is interpolated.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from condseg_jax import resample

WORK_VOXELS = 1 << 22  # of a slab of the result; about four float32 arrays of it exist at a time


def label_map(best: np.ndarray, score: np.ndarray, shape: Sequence[int],
              threshold: float) -> np.ndarray:
  """Resamples the output of `fuse.best_class`.

  Works on one class and one slab at a time, within the box of the class: memory beyond the
  arguments and the result is that of a slab.

  Args:
    best: class id + 1 of every voxel; overwritten.
    score: its probability; overwritten.
    shape: of the result, which covers the same field of view.
    threshold: probability from which a voxel belongs to a class.

  Returns:
    Class id + 1, or 0; [*shape] in the dtype of `best`.
  """
  _clear_far_background(best, score, threshold)
  source_shape, shape = best.shape, tuple(shape)
  if source_shape == shape:
    best[score < threshold] = 0
    return best
  boxes = [(value, box) for value, box in enumerate(ndimage.find_objects(best), 1) if box]
  out = np.zeros(shape, best.dtype)
  taps = [resample.linear_taps(n, m) for n, m in zip(source_shape, shape, strict=True)]
  for rows in _row_blocks(shape):
    source = resample.source_rows(source_shape, shape, rows)
    inside = resample.resampled_rows(score[source], shape, 1, rows, source_shape) >= threshold
    if inside.any():
      slab_taps = [tuple(t[rows] for t in taps[0]), *taps[1:]]
      out[rows] = _largest_share(best, score, boxes, slab_taps, inside)
  return out


def _row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
  """Yields blocks of rows of a result, as large as `WORK_VOXELS` allows."""
  count = max(1, WORK_VOXELS // math.prod(shape[1:]))
  for first in range(0, shape[0], count):
    yield slice(first, min(first + count, shape[0]))


def _clear_far_background(best: np.ndarray, score: np.ndarray, threshold: float) -> None:
  """Sets voxels to 0 that cannot contribute to the result, i.e. without a neighbour at threshold.

  This shrinks the boxes of the classes to those of the structures.
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
  """Returns the class with the largest interpolated probability where `inside`, else 0."""
  out = np.zeros(inside.shape, best.dtype)
  largest = np.zeros(inside.shape, np.float32)
  for value, box in boxes:
    cropped = [resample.cropped_taps(*pair) for pair in zip(taps, box, strict=True)]
    if any(target.start >= target.stop for _, target, _ in cropped):
      continue  # outside of these rows, or a thin structure between two of their centres
    source = tuple(source for source, _, _ in cropped)
    target = tuple(target for _, target, _ in cropped)
    share = np.where(best[source] == value, score[source], np.float32(0))
    for axis in sorted(range(share.ndim), key=lambda a: cropped[a][1].stop - cropped[a][1].start):
      share = resample.linear_pass(share, axis, cropped[axis][2])
    wins = share > largest[target]
    np.maximum(largest[target], share, out=largest[target])
    out[target][wins] = value
  out[~inside] = 0
  return out


def mask(read_rows: Callable[[slice], np.ndarray], source_shape: Sequence[int],
         shape: Sequence[int], threshold: float) -> np.ndarray:
  """Returns where the interpolated probability of one class reaches the threshold: bool [*shape].

  Args:
    read_rows: reads a block of rows of the probability on the network's grid, float32.
    source_shape: spatial shape of that grid.
    shape: of the result, which covers the same field of view.
    threshold: probability threshold.
  """
  return resampled(read_rows, source_shape, shape, bool, lambda block: block >= threshold)


def resampled(read_rows: Callable[[slice], np.ndarray], source_shape: Sequence[int],
              shape: Sequence[int], dtype: npt.DTypeLike,
              convert: Callable[[np.ndarray], np.ndarray] = lambda block: block) -> np.ndarray:
  """Interpolates one value per voxel block by block, and converts each block to `dtype`."""
  source_shape, shape = tuple(source_shape), tuple(shape)
  out = np.empty(shape, dtype)
  for rows in _row_blocks(shape):
    block = read_rows(resample.source_rows(source_shape, shape, rows))
    out[rows] = convert(resample.resampled_rows(block, shape, 1, rows, source_shape))
  return out
