"""Reads and writes NIfTI-1 and NIfTI-2 single files (.nii, .nii.gz).

The affine is the sform if its code is set, else the qform, as in nibabel and most readers. A file
that sets neither has no orientation and is refused; no default is assumed.

A file must end with its voxels: if more data follow, the header may give a wrong size, and all
voxels would be in wrong places. Only zero padding shorter than a row is tolerated.

Standard: https://nifti.nimh.nih.gov/nifti-1/documentation
"""

from collections.abc import Mapping
from collections.abc import Sequence
import gzip
import logging
import math
import os
from pathlib import Path
from typing import IO

import nibabel
import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats import label_table
from condseg_jax.formats.nifti_header import checked_geometry
from condseg_jax.formats.nifti_header import nifti_suffix
from condseg_jax.formats.nifti_header import opened_nifti
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import CORRECT
from condseg_jax.formats.voxels import Header
from condseg_jax.formats.voxels import planes
from condseg_jax.geometry import corner_distance
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

log = logging.getLogger("condseg_jax.nifti")

LABEL_INTENT = 1002
MAX_GZIP_RATIO = 1100  # deflate cannot exceed 1032:1; a header with a larger size is invalid
BLOCK = 1 << 22
QFORM_TOLERANCE = 0.1  # maximal deviation of a qform from the affine at a corner, in voxels


def read_nifti(path: str | os.PathLike) -> Volume:
  """Reads an image.

  Args:
    path: a .nii or .nii.gz file with three dimensions (trailing dimensions of size 1 are dropped).

  Returns:
    A volume in file axis order, native byte order, affine in mm. Without scl_slope and scl_inter
    it has the dtype of the file; with them it is float32.

  Raises:
    InputError: missing, damaged or invalid file; 2-D or 4-D; complex or colour voxels; no
      orientation; NaN or Inf.
  """
  array, geometry = _read_voxels(Path(path))
  check_finite(path, array)
  return Volume(array, geometry.affine)


def read_nifti_header(path: str | os.PathLike) -> Header:
  """Reads shape and affine of a NIfTI file from its header, without voxels.

  Raises:
    InputError: as `read_nifti`, except for damaged or invalid voxels.
  """
  with opened_nifti(Path(path)) as opened:
    geometry = checked_geometry(Path(path), opened.header)
    itemsize = opened.header.get_data_dtype().itemsize + 4 * (opened.scaling != (1.0, 0.0))
  return Header(geometry, math.prod(geometry.shape) * itemsize)


def read_names(path: str | os.PathLike) -> dict[str, int]:
  """Reads class names and their values from the label table of a file; {} if it has none."""
  with opened_nifti(Path(path)) as opened:
    return label_table.read_table(opened.header.extensions)[0]


def read_colors(path: str | os.PathLike) -> dict[str, tuple[int, int, int]]:
  """Reads class names and their colours, 0-255, from the label table; {} if it has none."""
  with opened_nifti(Path(path)) as opened:
    return label_table.read_table(opened.header.extensions)[1]


def write_nifti(
  path: str | os.PathLike,
  volume: Volume,
  *,
  label: bool = False,
  names: Mapping[str, int] | Sequence[str] | None = None,
  colors: Mapping[str, Sequence[int]] | None = None,
  code: int = 1,
) -> None:
  """Writes a 3-D volume in its axis order, atomically.

  sform and qform are set to the affine. An affine that a quaternion cannot represent (shear, and
  some half-turns because of rounding) is stored in the sform only. Voxels are not scaled; bool
  becomes uint8, 64-bit integers int32, other floating-point types float32.

  Args:
    path: ends in .nii or .nii.gz; the folder exists; an existing file is replaced.
    volume: three spatial axes, no channel axis.
    label: write a label map: intent code 1002, uint8 (uint16 for values above 255).
    names: class -> value, or the names of the classes 1, 2, ...; stored in a header extension that
      other programs support, too (see `label_table`).
    colors: class -> red, green, blue, 0-255; evenly spread hues by default.
    code: sform and qform code; 1 is scanner space.

  Raises:
    InputError: a volume that cannot be stored as NIfTI or as a label map; a path that cannot be
      written.
  """
  path = Path(path)
  nifti_suffix(path)
  if volume.ndim != 3 or volume.array.ndim != 3:
    reason = f"NIfTI requires one value per voxel of a 3-D grid, not shape {volume.array.shape}"
    raise InputError(path, reason, "write 2-D images as PNG and channels as separate files")
  array = _label_array(path, volume.array) if label else _image_array(path, volume.array)
  kind = nibabel.Nifti1Image if max(array.shape) < 2**15 else nibabel.Nifti2Image
  image = kind(array, volume.affine, dtype=array.dtype)
  _set_orientation(image, volume, code)
  image.header.set_xyzt_units("mm")
  if label:
    image.header.set_intent(LABEL_INTENT)
  if names is not None:
    values = names if isinstance(names, Mapping) else {n: i for i, n in enumerate(names, 1)}
    image.header.extensions.append(label_table.extension(values, colors or {}))
  with replacing(path) as temporary:
    nibabel.save(image, temporary)


def _read_voxels(path: Path) -> tuple[np.ndarray, Geometry]:
  with opened_nifti(path) as opened:
    header, stream = opened.header, opened.stream
    geometry = checked_geometry(path, header)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
      name = nibabel.nifti1.data_type_codes.label[int(header["datatype"])]
      cure = "convert it to one number per voxel, e.g. magnitude or grey value"
      raise InputError(path, f"has voxels of type {name}", cure)
    ratio = MAX_GZIP_RATIO if isinstance(stream, gzip.GzipFile) else 1
    if math.prod(geometry.shape) * dtype.itemsize > path.stat().st_size * ratio:
      raise EOFError  # before memory is allocated
    # nibabel would need the memory of a gzipped file twice.
    raw = np.empty(geometry.shape, dtype, order="F")
    stream.seek(header.get_data_offset())
    _fill(stream, raw.reshape(-1, order="F").data.cast("B"))
    row = geometry.shape[0] * dtype.itemsize
    rest = stream.read(row)  # normally to the end of the file, where gzip checks its checksum
    if len(rest) == row or any(rest):
      raise InputError(path, "contains more than the voxels that its header declares", CORRECT,
                       kind="size")
    slope, inter = opened.scaling
  for repair in opened.repairs:
    log.warning("%s: header: %s", path, repair)
  if (slope, inter) == (1.0, 0.0):
    native = dtype.newbyteorder("=") if dtype.itemsize <= 8 else np.dtype(np.float64)
    return raw.astype(native, copy=False), geometry
  scaled = np.empty(raw.shape, np.float32, order="F")
  with np.errstate(over="ignore"):  # check_finite reports Inf
    for plane, out in zip(planes(raw), planes(scaled), strict=True):
      out[...] = plane * np.float64(slope) + inter
  return scaled, geometry


def _fill(stream: IO[bytes], target: memoryview) -> None:
  for start in range(0, len(target), BLOCK):
    block = stream.read(min(BLOCK, len(target) - start))
    if len(block) < min(BLOCK, len(target) - start):
      raise EOFError
    target[start:start + len(block)] = block


def _set_orientation(image: nibabel.Nifti1Image, volume: Volume, code: int) -> None:
  image.header.set_sform(volume.affine, code)
  image.header.set_qform(volume.affine, code)
  stored = Geometry(volume.array.shape, image.header.get_qform())
  if corner_distance(stored, volume.geometry) > QFORM_TOLERANCE * min(volume.spacing):
    image.header["qform_code"] = 0


def _label_array(path: Path, array: np.ndarray) -> np.ndarray:
  array = np.asarray(array)
  if array.dtype.kind not in "biu":
    raise InputError(path, f"labels must be integers, not {array.dtype}", "convert them")
  low, high = array.min(), array.max()
  if low < 0 or high >= 2**16:
    raise InputError(path, f"labels from {low} to {high} must be in [0, 65535]",
                     "change the label values")
  return array.astype(np.uint8 if high < 2**8 else np.uint16, copy=False)


def _image_array(path: Path, array: np.ndarray) -> np.ndarray:
  array = np.asarray(array)
  kind, size = array.dtype.kind, array.dtype.itemsize
  if kind == "b":
    return array.astype(np.uint8)
  if kind in "iu" and size == 8:
    low, high = array.min(), array.max()
    if low < -(2**31) or high >= 2**31:
      raise InputError(path, f"integers from {low} to {high} do not fit into 32 bits",
                       "rescale the image")
    return array.astype(np.int32)
  if kind in "iu" or array.dtype in (np.float32, np.float64):
    return array
  if kind == "f" or array.dtype.name == "bfloat16":
    return array.astype(np.float32)
  raise InputError(path, f"voxels must be numbers, not {array.dtype}", "convert them")
