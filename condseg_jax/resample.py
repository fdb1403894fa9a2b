"""Resampling to another spacing, and back, without shifting or cropping the field of view.

The outer voxel *faces* of input and output coincide (scipy's `grid_mode=True`): with n input and m
output voxels along an axis, output centre i is at the input index x_i = (i + 1/2) n / m - 1/2.
Outside of [0, n - 1] the border voxels are repeated. Interpolation is separable: one pass for each
axis that changes, for any number of axes, with channels as trailing axes.
"""

import math
import os

import numpy as np
from scipy import ndimage

from condseg_jax.errors import InputError
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

SAME_SPACING = 1e-3  # relative difference below which an axis is not resampled
SPLINE_PAD = 12  # padding before the cubic prefilter, whose response decays by 0.27 per voxel

MAX_VOXELS = 1 << 32  # of a resampled image, some 50 times as many as the largest CTs have

AxisTaps = tuple[np.ndarray, np.ndarray, np.ndarray]


def resample_image(volume: Volume, spacing: tuple[float, ...], order: int = 1) -> Volume:
  """Resamples an image.

  Args:
    volume: n = 2 or 3 spatial axes, channels last if any.
    spacing: target spacing in mm, per array axis.
    order: 1 linear, 3 cubic B-spline (which may overshoot at edges).

  Returns:
    A float32 volume of shape max(1, round(extent / spacing)) whose affine makes the outer faces
    coincide exactly. Its spacing is therefore extent / shape; the extent at the target spacing
    would differ by half a voxel at most. Axes within 0.1 % of the target spacing are unchanged.

  Raises:
    ValueError: spacing of the wrong length or not positive; another order.
  """
  grid = resampled_geometry(volume.geometry, spacing)
  return Volume(_interpolate(volume.array, grid.shape, order), grid.affine)


def resample_labels(volume: Volume, spacing: tuple[float, ...]) -> Volume:
  """Resamples a label map or a three-valued mask; every output value occurs in the input.

  Each voxel takes the value with the largest linear weight (linear interpolation of the one-hot
  map, then argmax). Unlike nearest neighbour, this does not shift structures when the resolution is
  halved. Ties go to the larger value: foreground before background, unlabelled (255) before both.

  Args:
    volume: bool, or integers in [0, 65535]; no channel axis.
    spacing: as in `resample_image`, like the new shape and affine.

  Raises:
    ValueError: spacing of the wrong length or not positive; floats, negative or larger values.
  """
  grid = resampled_geometry(volume.geometry, spacing)
  return Volume(resample_to(volume.array, grid.shape, 0), grid.affine)


def resample_to(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
  """Resamples an array to a given shape over the same field of view, e.g. to the native grid.

  Args:
    array: len(shape) spatial axes, then channels if any (none for labels).
    shape: target spatial shape.
    order: 0 for labels (as `resample_labels`), 1 linear, 3 cubic.

  Returns:
    Labels in their input dtype, other arrays as float32.

  Raises:
    ValueError: an empty shape, too few axes, another order; see also `resample_labels`.
  """
  shape = tuple(int(size) for size in shape)
  if min(shape) < 1 or array.ndim < len(shape):
    raise ValueError(f"cannot resample an array of shape {array.shape} to {shape}")
  if order == 0:
    return _majority(array, shape, _passes(array.shape, shape))
  return _interpolate(array, shape, order)


def source_rows(old: tuple[int, ...], new: tuple[int, ...], rows: slice) -> slice:
  """Returns the input rows on which some output rows depend when shape `old` becomes `new`."""
  if old[0] == new[0]:
    return rows
  low, high, _ = linear_taps(old[0], new[0])
  return slice(int(low[rows][0]), int(high[rows][-1]) + 1)


def resampled_rows(source: np.ndarray, shape: tuple[int, ...], order: int, rows: slice,
                   old: tuple[int, ...]) -> np.ndarray:
  """Computes some rows of `resample_to(array, shape, order)`; needs only the memory of these rows.

  Args:
    source: `array[source_rows(old, shape, rows)]`.
    shape: target spatial shape of the whole array.
    order: 0 for labels, 1 linear.
    rows: rows of the result, with start and stop.
    old: spatial shape of the whole `array`.
  """
  passes = _passes(old, shape)
  if 0 in passes:
    low, high, weight = (taps[rows] for taps in passes[0])
    passes[0] = low - low[0], high - low[0], weight
  shape = (rows.stop - rows.start, *shape[1:])
  return _majority(source, shape, passes) if order == 0 else _linear(source, passes)


def check_size(image: str | os.PathLike, grid: Geometry) -> None:
  """Raises InputError if a resampled image would have too many voxels, see `MAX_VOXELS`."""
  if math.prod(grid.shape) > MAX_VOXELS:
    shape = " x ".join(map(str, grid.shape))
    raise InputError(image, f"would have {shape} voxels at the target spacing "
                     f"{','.join(f'{s:g}' for s in grid.spacing)}",
                     "choose a coarser `spacing`, or check the voxel size in its header")


def resampled_geometry(geometry: Geometry, spacing: tuple[float, ...]) -> Geometry:
  """Returns the grid of the results of `resample_image` and `resample_labels`.

  Raises:
    ValueError: spacing of the wrong length or not positive.
  """
  if len(spacing) != geometry.ndim or not all(np.isfinite(s) and s > 0 for s in spacing):
    raise ValueError(f"spacing {spacing} must be {geometry.ndim} positive numbers, in mm")
  shape = []
  for size, old, new in zip(geometry.shape, geometry.spacing, spacing, strict=True):
    same = abs(new / old - 1.0) <= SAME_SPACING
    shape.append(size if same else max(1, int(np.floor(size * old / new + 0.5))))
  return Geometry(tuple(shape), _resampled_affine(geometry, tuple(shape)))


def linear_taps(size_in: int, size_out: int) -> AxisTaps:
  """Returns the taps of a linear interpolation along one axis.

      out[i] = in[low[i]] + w[i] (in[high[i]] - in[low[i]])

  Returns:
    low, high: (size_out,) input indices, both ascending; w: (size_out,) float32 in [0, 1).
  """
  position = np.clip(_positions(size_in, size_out), 0.0, size_in - 1.0)
  low = np.floor(position).astype(np.intp)
  return low, np.ceil(position).astype(np.intp), (position - low).astype(np.float32)


def _positions(size_in: int, size_out: int) -> np.ndarray:
  return (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5


def _resampled_affine(geometry: Geometry, shape: tuple[int, ...]) -> np.ndarray:
  if shape == geometry.shape:
    return geometry.affine
  affine = geometry.affine.copy()
  affine[:-1, :-1] *= np.array(geometry.shape) / np.array(shape)
  # The face at index -1/2 is unchanged: A'(-1/2) = A(-1/2).
  affine[:-1, -1] += 0.5 * (affine - geometry.affine)[:-1, :-1].sum(axis=1)
  return affine


def _interpolate(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
  if order == 1:
    return _linear(array, _passes(array.shape, shape))
  if order != 3:
    raise ValueError(f"unknown order {order}; choose 1 (linear) or 3 (cubic)")
  array = np.ascontiguousarray(array, dtype=np.float32)
  for axis in _passes(array.shape, shape):
    array = _cubic_pass(array, axis, shape[axis])
  return array


def _passes(old: tuple[int, ...], new: tuple[int, ...]) -> dict[int, AxisTaps]:
  """Returns the taps of the axes that change, shrinking axes first: later passes are smaller."""
  changing = (axis for axis, size in enumerate(new) if size != old[axis])
  return {axis: linear_taps(old[axis], new[axis])
          for axis in sorted(changing, key=lambda axis: new[axis] / old[axis])}


def _linear(array: np.ndarray, passes: dict[int, AxisTaps]) -> np.ndarray:
  array = np.ascontiguousarray(array, dtype=np.float32)
  for axis, taps in passes.items():
    array = linear_pass(array, axis, taps)
  return array


def linear_pass(array: np.ndarray, axis: int, taps: AxisTaps) -> np.ndarray:
  """Interpolates a float32 array linearly along one axis; see `linear_taps`."""
  low, high, weight = taps
  # All indices are valid; mode="clip" is faster, since numpy does not check each of them.
  out = np.take(array, low, axis, mode="clip")
  step = np.take(array, high, axis, mode="clip")
  step -= out  # in this form constants are reproduced exactly
  step *= weight.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
  out += step
  return out


def _cubic_pass(array: np.ndarray, axis: int, size: int) -> np.ndarray:
  """Interpolates along one axis by cubic B-splines (prefilter, four taps), as scipy's zoom does."""
  pad = [(SPLINE_PAD if a == axis else 0,) * 2 for a in range(array.ndim)]
  coefficients = np.pad(array, pad, mode="edge")
  ndimage.spline_filter1d(coefficients, 3, axis, output=coefficients, mode="mirror")
  position = _positions(array.shape[axis], size)
  low = np.floor(position).astype(np.intp)
  t = position - low
  taps = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 1 / 6 + (t + t**2 - t**3) / 2, t**3 / 6)
  out = None
  for offset, weight in enumerate(taps):
    column = weight.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    term = np.take(coefficients, low + (SPLINE_PAD - 1 + offset), axis, mode="clip")
    term *= column
    out = term if out is None else np.add(out, term, out=out)
  return out


def _majority(array: np.ndarray, shape: tuple[int, ...],
              passes: dict[int, AxisTaps]) -> np.ndarray:
  """Takes the argmax over values of their interpolated indicators, each in its bounding box."""
  array = np.asarray(array)
  if array.ndim != len(shape) or array.dtype.kind not in "biu":
    raise ValueError(f"labels of shape {array.shape} and type {array.dtype} must be "
                     f"{len(shape)}-D integers")
  if not passes:
    return array
  if array.min() < 0 or array.max() > 65535:
    raise ValueError(f"labels from {array.min()} to {array.max()} must be in [0, 65535]")
  labels = np.ascontiguousarray(array, dtype=np.uint16 if array.max() > 255 else np.uint8)
  boxes = [(value, box) for value, box in enumerate(ndimage.find_objects(labels), 1) if box]
  if not labels.all():
    boxes.insert(0, (0, tuple(slice(0, size) for size in array.shape)))
  taps = [passes.get(axis) or linear_taps(size, size) for axis, size in enumerate(array.shape)]
  out = np.zeros(shape, array.dtype)
  best = np.zeros(shape, np.float32)
  for value, box in boxes:  # ascending, so that >= gives ties to the larger value
    cropped = [cropped_taps(*pair) for pair in zip(taps, box, strict=True)]
    if any(target.start >= target.stop for _, target, _ in cropped):
      continue  # a thin structure between two output voxel centres
    score = (labels[tuple(source for source, _, _ in cropped)] == value).astype(np.float32)
    target = tuple(target for _, target, _ in cropped)
    for axis in passes:
      score = linear_pass(score, axis, cropped[axis][2])
    wins = score >= best[target]
    best[target][wins] = score[wins]
    out[target][wins] = value
  return out


def cropped_taps(taps: AxisTaps, box: slice) -> tuple[slice, slice, AxisTaps]:
  """Restricts taps along one axis to a structure inside `box`.

  Returns:
    Input range, output range, and the taps relative to the input range.
  """
  low, high, weight = taps
  first = int(np.searchsorted(high, box.start, "left"))
  last = int(np.searchsorted(low, box.stop, "left"))
  low, high = low[first:last], high[first:last]
  source = slice(low[0], high[-1] + 1) if first < last else slice(0, 0)
  start = source.start
  return source, slice(first, last), (low - start, high - start, weight[first:last])
