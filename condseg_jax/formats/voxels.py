"""Checks of voxels that all readers share: finite numbers, and integral labels."""

from collections.abc import Iterator
import os
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

INTEGRAL_TOLERANCE = 1e-4  # rounding error of a label value scaled by a float32 scl_slope


class Header(NamedTuple):
  """Properties of a volume that are known before its voxels are read.

  Attributes:
    geometry: its grid.
    peak_bytes: maximal memory for reading it.
  """

  geometry: Geometry
  peak_bytes: int


def planes(array: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the slices along the last axis, contiguous in Fortran order, to bound working memory."""
  return (array[..., index] for index in range(array.shape[-1]))


def check_finite(path: str | os.PathLike, array: np.ndarray) -> None:
  """Raises InputError, with `path` as its subject, for an array with NaN or Inf."""
  if array.dtype.kind != "f":
    return
  finite = sum(np.count_nonzero(np.isfinite(plane)) for plane in planes(array))
  if finite < array.size:
    reason = f"{array.size - finite} of {array.size} voxels are NaN or Inf"
    raise InputError(path, reason, "replace them, e.g. by the value of air", kind="not_finite")


def to_labels(path: str | os.PathLike, volume: Volume) -> Volume:
  """Converts voxels to a label map of the smallest possible unsigned dtype.

  Args:
    path: for error messages.
    volume: integers, or floating-point numbers with integral values.

  Raises:
    InputError: channels, negative values, fractions.
  """
  array = volume.array
  if array.ndim > volume.ndim:
    raise InputError(path, "is a colour picture, not a label map",
                     "store the class numbers as grey values or palette indices")
  low, high = array.min(), array.max()
  if low < -INTEGRAL_TOLERANCE or high >= 2**32:
    value = low if low < 0 else high
    raise InputError(path, f"is a label map with the value {value:g}", "number the classes from 1",
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
        reason = f"is a label map with the fractional value {plane[fractional][0]:g}"
        raise InputError(path, reason, "threshold it, or resample with nearest neighbour",
                         kind="fractional_label")
      plane = rounded
    out[...] = plane
  return Volume(labels, volume.affine)
