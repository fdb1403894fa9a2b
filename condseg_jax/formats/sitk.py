"""Reads MetaImage (.mhd with its .raw, .mha) and NRRD (.nrrd, .nhdr), with SimpleITK; writes NRRD.

SimpleITK accepts damaged compressed data, and where compressed voxels are missing it returns
whatever the memory contained, so that they are checked before; for headers see `itk_header`.
"""

from collections.abc import Sequence
import contextlib
import functools
import gzip
import hashlib
import math
import os
from pathlib import Path
import tempfile
from typing import IO
import zlib

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.itk_header import check_header
from condseg_jax.formats.itk_header import find_stored
from condseg_jax.formats.itk_header import is_meta
from condseg_jax.formats.itk_header import member_paths
from condseg_jax.formats.itk_header import Stored
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import BLOCK
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import CORRECT
from condseg_jax.formats.voxels import Header
from condseg_jax.formats.voxels import unpacked_size
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
DTYPES = {
  sitk.sitkUInt8: np.uint8, sitk.sitkInt8: np.int8, sitk.sitkUInt16: np.uint16,
  sitk.sitkInt16: np.int16, sitk.sitkUInt32: np.uint32, sitk.sitkInt32: np.int32,
  sitk.sitkUInt64: np.uint64, sitk.sitkInt64: np.int64, sitk.sitkFloat32: np.float32,
  sitk.sitkFloat64: np.float64,
}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_LENGTH_ERROR = 0.01


def read_sitk(path: str | os.PathLike) -> Volume:
  """Reads an image.

  Args:
    path: a 3-D file with one of the `SUFFIXES`.

  Returns:
    A volume in file axis order, affine in RAS+ mm.

  Raises:
    InputError: missing, damaged or invalid file; voxels of another size than its header says; 2-D
      or 4-D; several numbers per voxel; incomplete geometry; NaN or Inf.
  """
  path = Path(path)
  header, stored = _read_header(path)
  if stored.packed:
    _check_packed(path, stored)
  try:
    image = _reader(path).Execute()
  except RuntimeError as error:
    raise InputError(path, f"cannot be read ({last_line(error)})", AGAIN,
                     kind="truncated") from error
  array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
  check_finite(path, array)
  return Volume(array, header.geometry.affine)


def read_sitk_header(path: str | os.PathLike) -> Header:
  """Reads shape and affine from the header, without voxels.

  Raises:
    InputError: as `read_sitk`, except for damaged or invalid voxels.
  """
  return _read_header(Path(path))[0]


def write_nrrd(path: str | os.PathLike, label: Volume) -> None:
  """Writes a label map atomically as NRRD: uint16 without compression.

  That is what 3D Slicer and the readers of NRRD in browsers take; they know no other dtype for
  labels.

  Args:
    path: file with the suffix .nrrd.
    label: integers from 0 to 65535; 3-D, affine in RAS+ mm.

  Raises:
    InputError: the path cannot be written.
  """
  affine = LPS_TO_RAS @ label.affine
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  image = sitk.GetImageFromArray(label.array.transpose(2, 1, 0).astype(np.uint16))
  image.SetSpacing(spacing.tolist())
  image.SetOrigin(affine[:3, 3].tolist())
  image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
  with replacing(path) as temporary:
    try:
      sitk.WriteImage(image, str(temporary), useCompression=False, imageIO="NrrdImageIO")
    except RuntimeError as error:
      raise OSError(last_line(error)) from error


def last_line(error: RuntimeError) -> str:
  """Returns the line of a SimpleITK exception that contains the cause."""
  line = str(error).strip().splitlines()[-1]
  return line.rpartition("): ")[2] or line


def check_directions(directions: Sequence[Sequence[float]] | np.ndarray,
                     subject: str | os.PathLike) -> None:
  """Raises InputError if axes (rows of `directions`) are not unit vectors.

  Spacing and direction would be inconsistent otherwise.
  """
  lengths = np.linalg.norm(directions, axis=1)
  if np.abs(lengths - 1).max() > MAX_LENGTH_ERROR:
    listing = " x ".join(f"{x:.4g}" for x in lengths)
    raise InputError(subject, f"its direction vectors have the lengths {listing}, not 1",
                     "correct the header, or convert the original again", kind="direction")


def _read_header(path: Path) -> tuple[Header, Stored]:
  check_header(path)
  reader = _reader(path)
  try:
    reader.ReadImageInformation()
  except RuntimeError as error:
    raise InputError(path, f"has an invalid header ({last_line(error)})", AGAIN) from error
  if reader.GetNumberOfComponents() > 1 or reader.GetPixelIDValue() not in DTYPES:
    raise InputError(path, f"has {reader.GetNumberOfComponents()} numbers per voxel",
                     "convert it to one number per voxel, e.g. grey value")
  affine = np.eye(4)
  affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
  affine[:3, 3] = reader.GetOrigin()
  affine = LPS_TO_RAS @ affine
  check_affine(affine, path)
  check_directions(np.reshape(reader.GetDirection(), (3, 3)).T, path)
  shape = tuple(reader.GetSize())
  size = math.prod(shape) * np.dtype(DTYPES[reader.GetPixelIDValue()]).itemsize
  # Two copies in memory: SimpleITK's and numpy's.
  return Header(Geometry(shape, affine), 2 * size), find_stored(path, size)


def _reader(path: Path) -> sitk.ImageFileReader:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("MetaImageIO" if is_meta(path) else "NrrdImageIO")
  name = str(path)
  if not is_utf8(name):
    name = linked(path, *member_paths(path)[1:])
  reader.SetFileName(name)
  return reader


def is_utf8(name: str) -> bool:
  """Returns whether a file name is UTF-8, the only encoding that SimpleITK takes."""
  return not any("\ud800" <= character <= "\udfff" for character in name)


def linked(path: Path, *others: Path) -> str:
  """Returns an ASCII name of a file, beside which `others` have the names that its header gives.

  The names are symbolic links in a folder that is removed when the process ends.
  """
  folder = Path(_links().name, hashlib.sha256(os.fsencode(path.absolute())).hexdigest())
  folder.mkdir(exist_ok=True)
  link = folder / ("image" + (path.suffix if path.suffix.isascii() else ""))
  for name, target in ((link.name, path), *((other.name, other) for other in others)):
    with contextlib.suppress(FileExistsError):
      (folder / name).symlink_to(target.absolute())
  return str(link)


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix="condseg-")


def _check_packed(path: Path, stored: Stored) -> None:
  """Checks the checksum and the size of compressed voxels without keeping them."""
  try:
    with stored.path.open("rb") as stream:
      stream.seek(stored.start)
      if is_meta(path):
        blocks = iter(lambda: stream.read(BLOCK), b"")
        size = unpacked_size(blocks, stored.size, zlib.MAX_WBITS | 32)  # zlib or gzip
      else:
        size = _gzip_size(stream, stored.size)
  except (zlib.error, gzip.BadGzipFile) as error:
    raise InputError(path, f"has damaged compressed voxels ({error})", AGAIN,
                     kind="truncated") from error
  except EOFError as error:
    raise InputError(path, "is truncated: its compressed voxels are incomplete", AGAIN,
                     kind="truncated") from error
  if size < stored.size:
    raise InputError(path, f"its compressed voxels contain {size} of {stored.size} bytes", CORRECT,
                     kind="truncated")
  if size > stored.size:
    raise InputError(path, f"its compressed voxels contain more than {stored.size} bytes, the size "
                     "in its header", CORRECT, kind="size")


def _gzip_size(stream: IO[bytes], limit: int) -> int:
  """Does the same as `unpacked_size` for gzip files, which may consist of several parts."""
  size = 0
  with gzip.GzipFile(fileobj=stream) as unpacked:
    while size <= limit and (block := unpacked.read(BLOCK)):
      size += len(block)
  return size
