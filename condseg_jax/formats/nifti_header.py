"""Opens NIfTI files and checks their headers before nibabel repairs what is wrong in them."""

from collections.abc import Iterator
import contextlib
import gzip
import logging
import math
from pathlib import Path
import re
from typing import IO
from typing import NamedTuple
import zlib

import nibabel
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import check_file
from condseg_jax.formats.voxels import CORRECT
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import Geometry

XFORM_CODES = range(6)  # of sform_code and qform_code; 5 is an addition to the standard of 2007
MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1e3, "micron": 1e-3}
MAX_HEADER = 1 << 24  # maximal bytes before the voxels, since extensions are read into memory
EXTENDER = 4  # bytes between header and extensions


class Opened(NamedTuple):
  """An open file.

  Attributes:
    header: checked and repaired by nibabel.
    repairs: descriptions of what was repaired.
    stream: the unpacked file, at any position.
  """

  header: nibabel.Nifti1Header
  repairs: list[str]
  stream: IO[bytes]

  @property
  def scaling(self) -> tuple[float, float]:
    """Slope and intercept; (1, 0) if the header does not set them."""
    slope, inter = self.header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (slope, inter)


class _Repairs(list):
  """Collects nibabel's messages about a header; its own logger prints them for every opening."""

  def log(self, level: int, message: str) -> None:
    if level >= logging.WARNING:
      self.append(message)


@contextlib.contextmanager
def opened_nifti(path: Path) -> Iterator[Opened]:
  """Opens a file, reads its header, and converts exceptions to InputError."""
  check_file(path, "give the .nii or .nii.gz file in it")
  compressed = nifti_suffix(path).lower() == ".nii.gz"
  try:
    with path.open("rb") as file:
      start = file.read(2)
    if not start:
      raise InputError(path, "is empty (0 bytes)", AGAIN)
    if compressed != (start == b"\x1f\x8b"):
      state = "is not gzip-compressed" if compressed else "is gzip-compressed"
      correct = path.name[:-3] if compressed else path.name + ".gz"
      raise InputError(path, f"{state} despite its name", f"name it {correct}, if it is NIfTI")
    with gzip.open(path) if compressed else path.open("rb") as stream:
      kind = _header_class(path, stream)
      stream.seek(0)
      header, repairs = kind.from_fileobj(stream, check=False), _Repairs()
      header.check_fix(repairs, logging.ERROR)
      yield Opened(header, repairs, stream)
  except InputError:
    raise
  except (zlib.error, gzip.BadGzipFile) as error:
    raise InputError(path, f"gzip data is damaged ({error})", AGAIN, kind="truncated") from error
  except (HeaderDataError, WrapStructError, ValueError, KeyError) as error:
    raise InputError(path, f"has an invalid header: {error}", AGAIN) from error
  except (EOFError, OSError) as error:
    if getattr(error, "errno", None) is None:  # the file is shorter than its header states
      raise InputError(path, "is truncated", AGAIN, kind="truncated") from error
    raise InputError(path, f"cannot be read: {error.strerror}", "check its permissions") from error


def _header_class(path: Path, stream: IO[bytes]) -> type:
  """Returns the class by magic bytes, and checks the header before nibabel modifies it."""
  head = stream.read(540)
  if head[344:348] in (b"n+1\0", b"n+1 "):
    kind = nibabel.Nifti1Header
  elif head[4:8] == b"n+2\0":
    kind = nibabel.Nifti2Header
  elif head[344:347] == b"ni1":
    raise InputError(path, "is one half of a NIfTI pair (.hdr and .img)", "convert it to .nii")
  else:
    raise InputError(path, "is not a NIfTI file", "convert it, e.g. with dcm2niix or SimpleITK")
  size = kind.template_dtype.itemsize
  header = kind(head[:size], check=False)
  if header["sform_code"] == 0 and header["qform_code"] == 0:
    reason = "has no orientation: sform_code and qform_code are 0"
    raise InputError(path, reason, "set the affine, or convert the original again", kind="affine")
  # nibabel sets an invalid code to 0, and assumes an orientation if none is left.
  used = "qform_code" if header["sform_code"] == 0 else "sform_code"
  if int(header[used]) not in XFORM_CODES:
    raise InputError(path, f"has an invalid orientation: {used} is {header[used]}, not 1 to 5",
                     "set the affine, or convert the original again", kind="affine")
  if not size + EXTENDER <= header["vox_offset"] <= MAX_HEADER:  # refuses NaN, too
    reason = f"has an invalid header: voxels start at byte {header['vox_offset']:g}"
    raise InputError(path, reason, AGAIN)
  _check_extensions(path, stream, header)
  # 0 is no scaling by the standard; NaN is how nibabel writes that there is none.
  slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
  if math.isinf(slope) or math.isnan(slope) and inter != 0 and not math.isnan(inter):
    raise InputError(path, f"has an invalid scaling: scl_slope {slope:g}, scl_inter {inter:g}",
                     CORRECT)
  if not 1 <= header["dim"][0] <= 7:
    raise InputError(path, f"has an invalid header: {header['dim'][0]} dimensions", AGAIN)
  qfac, pixdim = header["pixdim"][0], header["pixdim"][1:4]
  if header["sform_code"] == 0 and qfac not in (-1, 0, 1):  # nibabel would take it for 1
    raise InputError(path, f"has an invalid orientation: qfac is {qfac:g}, not 1 or -1", CORRECT,
                     kind="affine")
  if header["sform_code"] == 0 and not np.all((pixdim > 0) & np.isfinite(pixdim)):
    raise InputError(path, f"has an invalid spacing: {pixdim.tolist()} mm",
                     "set pixdim to the voxel size")
  return kind


def _check_extensions(path: Path, stream: IO[bytes], header: nibabel.Nifti1Header) -> None:
  """Checks that the extensions end before the voxels; nibabel would read voxels as extensions."""
  position, end = header.template_dtype.itemsize, int(header["vox_offset"])
  stream.seek(position)
  if stream.read(EXTENDER)[:1] in (b"", b"\0"):
    return
  position += EXTENDER
  while end - position >= 16:  # the smallest extension
    stream.seek(position)
    size = stream.read(4)
    if len(size) < 4:
      raise EOFError
    length = int.from_bytes(size, "little" if header.endianness == "<" else "big", signed=True)
    if not 8 <= length <= end - position:
      raise InputError(path, f"has an invalid header: an extension of {length} bytes", AGAIN)
    position += length


def checked_geometry(path: Path, header: nibabel.Nifti1Header) -> Geometry:
  """Returns shape and affine in mm of a 3-D image; raises InputError for any other."""
  shape = header.get_data_shape()
  while len(shape) > 3 and shape[-1] == 1:
    shape = shape[:-1]
  if len(shape) > 3:
    count = math.prod(shape[3:])
    cure = "split it first and give one volume, e.g. with fslsplit or nibabel.four_to_three"
    raise InputError(path, f"is {len(shape)}-D: {count} volumes of shape {shape[:3]}", cure,
                     kind="4-D")
  if len(shape) < 3:
    cure = "store a slice as (x, y, 1) with its affine, or a picture as PNG"
    raise InputError(path, f"is {len(shape)}-D: shape {shape}", cure, kind="2-D")
  if min(shape) < 1:
    raise InputError(path, f"has no voxels: shape {shape}", AGAIN)
  affine = header.get_best_affine()
  affine[:3] *= MM_PER_UNIT[header.get_xyzt_units()[0]]
  check_affine(affine, path)
  return Geometry(shape, affine)


def nifti_suffix(path: Path) -> str:
  """Returns the suffix as it is written; raises InputError for any other."""
  match = re.search(r"\.nii(\.gz)?$", path.name, re.IGNORECASE)
  if not match:
    raise InputError(path, "is not named .nii or .nii.gz", "convert or rename it")
  return match.group()
