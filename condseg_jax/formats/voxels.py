"""What every reader asks of voxels: finite numbers, and labels that are classes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

INTEGRAL_TOLERANCE = 1e-4  # what a float32 scl_slope costs a label value


class Header(NamedTuple):
  """What is known of a volume before a voxel is read.

  Attributes:
    geometry: its grid.
    peak_bytes: memory that reading it takes at most.
  """

  geometry: Geometry
  peak_bytes: int


def planes(array: np.ndarray) -> Iterator[np.ndarray]:
  """The slices of the last axis, contiguous as files store them: bounds the working memory."""
  return (array[..., index] for index in range(array.shape[-1]))


def check_finite(path, array: np.ndarray) -> None:
  """Raises InputError, about `path`, for an array with NaN or Inf."""
  if array.dtype.kind != "f":
    return
  finite = sum(np.count_nonzero(np.isfinite(plane)) for plane in planes(array))
  if finite < array.size:
    reason = f"{array.size - finite} of {array.size} voxels are NaN or Inf"
    raise InputError(path, reason, "replace them, e.g. by the value of air", kind="not_finite")


def to_labels(path, volume: Volume) -> Volume:
  """A label map of the smallest unsigned dtype that holds it, from voxels as read.

  Args:
    path: named in the error.
    volume: its values may be stored as floating-point numbers while every one is integral.

  Raises:
    InputError: channels, negative values, fractions.
  """
  array = volume.array
  if array.ndim > volume.ndim:
    raise InputError(path, "is a colour picture where labels are expected",
                     "store the class numbers, as grey values or palette indices")
  low, high = array.min(), array.max()
  if low < -INTEGRAL_TOLERANCE or high >= 2**32:
    value = low if low < 0 else high
    raise InputError(path, f"label map with the value {value:g}", "number the classes from 1",
                     kind="unknown_value")
  dtype = np.min_scalar_type(int(round(high)))
  if array.dtype == dtype:
    return volume
  labels = np.empty(array.shape, dtype, order="F")
  for plane, out in zip(planes(array), planes(labels), strict=True):
    if array.dtype.kind == "f":
      rounded = np.rint(plane)
      fractional = np.abs(plane - rounded) > INTEGRAL_TOLERANCE
      if fractional.any():
        reason = f"label map with the fractional value {plane[fractional][0]:g}"
        raise InputError(path, reason, "threshold it, or resample with nearest neighbour",
                         kind="fractional_label")
      plane = rounded
    out[...] = plane
  return Volume(labels, volume.affine)
