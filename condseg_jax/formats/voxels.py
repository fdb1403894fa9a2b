"""Checks that readers share: of files and compressed data, finite numbers, integral labels."""

from collections.abc import Iterable
from collections.abc import Iterator
import os
from pathlib import Path
from typing import NamedTuple
import zlib

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

AGAIN = "copy or download it again"
CORRECT = "correct the header, or convert the original again"
BLOCK = 1 << 18  # bytes that are unpacked at a time
FLOAT32_MAX = float(np.finfo(np.float32).max)
INTEGRAL_TOLERANCE = 1e-4  # rounding error of a label value scaled by a float32 scl_slope


class Header(NamedTuple):
  """Properties of a volume that are known before its voxels are read.

  Attributes:
    geometry: its grid.
    peak_bytes: maximal memory for reading it.
  """

  geometry: Geometry
  peak_bytes: int


def check_file(path: Path, folder_cure: str = "give the image file in it") -> None:
  """Raises InputError for a path that is missing or a folder, or that may never end.

  A pipe, socket or device must not be opened: reading could wait for ever.

  Args:
    path: the file to open.
    folder_cure: what to do if it is a folder.
  """
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", folder_cure)
  if not path.is_file():
    raise InputError(path, "is not a regular file", "copy its content to a file")


def unpacked_size(blocks: Iterable[bytes], limit: int, format_bits: int) -> int:
  """Returns the size of compressed data when unpacked, or a size above `limit` if it is larger.

  The data are not kept, and nothing beyond the limit is unpacked.

  Args:
    blocks: the compressed data.
    limit: size in bytes at which to stop.
    format_bits: the format, as `wbits` of `zlib.decompressobj`.

  Raises:
    zlib.error: the data are damaged.
    EOFError: the data are incomplete.
  """
  unpacker, size = zlib.decompressobj(format_bits), 0
  for block in blocks:
    while True:
      unpacked = unpacker.decompress(block, BLOCK)
      size += len(unpacked)
      if unpacker.eof or size > limit:
        return size
      block = unpacker.unconsumed_tail
      if not block and len(unpacked) < BLOCK:
        break
  raise EOFError("compressed data are incomplete")


def planes(array: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the slices along the last axis, contiguous in Fortran order, to bound working memory."""
  return (array[..., index] for index in range(array.shape[-1]))


def check_finite(path: str | os.PathLike, array: np.ndarray) -> None:
  """Raises InputError for an array with NaN or Inf, or with numbers that float32 cannot hold.

  Args:
    path: for the error message.
    array: the voxels; all computation on them is in float32.
  """
  if array.dtype.kind != "f":
    return
  finite = sum(np.count_nonzero(np.isfinite(plane)) for plane in planes(array))
  if finite < array.size:
    reason = f"{array.size - finite} of {array.size} voxels are NaN or Inf"
    raise InputError(path, reason, "replace them, e.g. by the value of air", kind="not_finite")
  if array.dtype.itemsize <= 4:
    return
  large = sum(np.count_nonzero(np.abs(plane) > FLOAT32_MAX) for plane in planes(array))
  if large:
    reason = f"{large} of {array.size} voxels are beyond {FLOAT32_MAX:.2g}, the limit of float32"
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
