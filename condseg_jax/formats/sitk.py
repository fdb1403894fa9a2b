"""Reads MetaImage (.mhd with its .raw, .mha) and NRRD (.nrrd, .nhdr), with SimpleITK.

SimpleITK replaces missing or invalid header fields by defaults (spacing 1, origin 0, axes of the
patient), and accepts damaged compressed data. This module refuses files without a complete
geometry, checks compressed voxels, and requires that data files are in the folder of the header.

Formats: https://itk.org/Wiki/ITK/MetaIO/Documentation and
https://teem.sourceforge.net/nrrd/format.html
"""

from collections.abc import Sequence
import math
import os
from pathlib import Path
import re
import zlib

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import Header
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
DTYPES = {
  sitk.sitkUInt8: np.uint8, sitk.sitkInt8: np.int8, sitk.sitkUInt16: np.uint16,
  sitk.sitkInt16: np.int16, sitk.sitkUInt32: np.uint32, sitk.sitkInt32: np.int32,
  sitk.sitkUInt64: np.uint64, sitk.sitkInt64: np.int64, sitk.sitkFloat32: np.float32,
  sitk.sitkFloat64: np.float64,
}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Alternative names of the fields of MetaImage's geometry → number of values.
META_GEOMETRY = {("TransformMatrix", "Rotation", "Orientation"): 9,
                 ("Offset", "Position", "Origin"): 3, ("ElementSpacing", "ElementSize"): 3}
NRRD_GEOMETRY = {("space",): 0, ("space directions",): 9, ("space origin",): 3}
# Other NRRD spaces do not define the patient's left; SimpleITK would read them as LPS.
NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras",
               "left-anterior-superior", "las")
META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4,
              "ULONG": 4, "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
HEADER_LIMIT = 1 << 20
BLOCK = 1 << 16
MAX_LENGTH_ERROR = 0.01
AGAIN = "copy or download it again"


def read_sitk(path: str | os.PathLike) -> Volume:
  """Reads an image.

  Args:
    path: a 3-D file with one of the `SUFFIXES`.

  Returns:
    A volume in file axis order, affine in RAS+ mm.

  Raises:
    InputError: missing, damaged or invalid file; 2-D or 4-D; several numbers per voxel; incomplete
      geometry; NaN or Inf.
  """
  path = Path(path)
  header = read_sitk_header(path)
  _check_compressed(path)
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
  path = Path(path)
  _check_header(path)
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
  # Two copies in memory: SimpleITK's and numpy's.
  size = 2 * math.prod(shape) * np.dtype(DTYPES[reader.GetPixelIDValue()]).itemsize
  return Header(Geometry(shape, affine), size)


def sitk_members(path: str | os.PathLike) -> list[Path]:
  """Returns the files of which an image consists: the header, and the data file if there is one.

  Raises:
    InputError: the data file is missing, or not in the folder of the header.
  """
  path = Path(path)
  fields = _fields(path)[0]
  data = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile")
  if not data or data.upper() == "LOCAL":
    return [path]
  if re.search(r"[/\\%\s]", data) or data.upper() == "LIST":
    raise InputError(path, f"refers to the data {data!r}, not to one file in the same folder",
                     "convert it to one file, e.g. .mha or .nrrd")
  if not (path.parent / data).exists():
    raise InputError(path, f"its data file {data} is missing", AGAIN)
  return [path, path.parent / data]


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


def _reader(path: Path) -> sitk.ImageFileReader:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("MetaImageIO" if _is_meta(path) else "NrrdImageIO")
  reader.SetFileName(str(path))
  return reader


def _check_header(path: Path) -> None:
  """Checks what SimpleITK does not check."""
  fields, start = _fields(path)
  meta = _is_meta(path)
  dimensions = fields.get("NDims" if meta else "dimension", "")
  sizes = fields.get("DimSize" if meta else "sizes", "").split()
  if not dimensions.isdigit() or len(sizes) != int(dimensions) or not all(map(_positive, sizes)):
    raise InputError(path, "has no valid size in its header", AGAIN)
  if int(dimensions) != 3:
    cure = ("split it and give one volume" if int(dimensions) > 3 else
            "store a slice with a third axis of size 1")
    raise InputError(path, f"is {dimensions}-D: size {' '.join(sizes)}", cure,
                     kind="4-D" if int(dimensions) > 3 else "2-D")
  for names, count in (META_GEOMETRY if meta else NRRD_GEOMETRY).items():
    name = next((name for name in names if name in fields), names[0])
    if name not in fields:
      raise InputError(path, f"has an incomplete geometry: no {name} in its header",
                       f"add {name} to the header, or convert the original again", kind="affine")
    if count and len(_numbers(fields[name])) != count:
      raise InputError(path, f"{name} must be {count} finite numbers, not {fields[name]!r}",
                       "correct the header, or convert the original again", kind="affine")
  units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm"}
  if not meta and (fields["space"].lower() not in NRRD_SPACES or units):
    system = f"the units {', '.join(sorted(units))}" if units else f"the space {fields['space']!r}"
    raise InputError(path, f"uses {system} instead of patient coordinates in mm",
                     "convert it to the space left-posterior-superior", kind="affine")
  spacing = _numbers(fields.get("ElementSpacing") or fields.get("ElementSize", ""))
  if meta and min(spacing) <= 0:
    raise InputError(path, f"has an invalid spacing: {spacing} mm",
                     "correct ElementSpacing in the header")
  width = META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"), 0)
  if fields.get("CompressedData", "False").lower() != "true":
    data = sitk_members(path)[-1]
    expected = math.prod(map(int, sizes)) * width
    available = data.stat().st_size - (start if data == path else 0)
    if available < expected:
      raise InputError(path, f"is truncated: {data.name} has {available} of {expected} bytes",
                       AGAIN, kind="truncated")


def _check_compressed(path: Path) -> None:
  """Checks the checksum of compressed voxels, which MetaImage's reader ignores."""
  fields, start = _fields(path)
  if _is_meta(path):
    packed = fields.get("CompressedData", "False").lower() == "true"
  else:
    packed = fields.get("encoding", "").lower() in ("gz", "gzip") and not {
        "byte skip", "line skip", "byteskip", "lineskip"} & set(fields)
  if not packed:
    return
  data, unpacker = sitk_members(path)[-1], zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip
  with data.open("rb") as stream:
    stream.seek(start if data == path else 0)
    try:
      while not unpacker.eof and (block := stream.read(BLOCK)):
        unpacker.decompress(block)
    except zlib.error as error:
      raise InputError(path, f"has damaged compressed voxels ({error})", AGAIN,
                       kind="truncated") from error
  if not unpacker.eof:
    raise InputError(path, "is truncated: its compressed voxels are incomplete", AGAIN,
                     kind="truncated")


def _is_meta(path: Path) -> bool:
  return path.suffix.lower() in (".mhd", ".mha")


def _positive(text: str) -> bool:
  return text.isdigit() and int(text) > 0


def _numbers(text: str) -> tuple[float, ...]:
  """Returns the finite numbers in a field such as `1 0 2` or `(1,0,0) (0,1,0)`; () otherwise."""
  try:
    values = tuple(float(x) for x in re.sub(r"[(),]", " ", text).split())
  except ValueError:
    return ()
  return values if all(map(math.isfinite, values)) else ()


def _fields(path: Path) -> tuple[dict[str, str], int]:
  """Returns the `key = value` or `key: value` lines of the header, and its size in bytes."""
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", "give the image file in it")
  with path.open("rb") as stream:
    text = stream.read(HEADER_LIMIT).decode("latin-1")
  if not text:
    raise InputError(path, "is empty (0 bytes)", AGAIN)
  meta = _is_meta(path)
  if not meta and not text.startswith("NRRD"):
    raise InputError(path, "is not a NRRD file", "convert it, or use the suffix of its format")
  fields, length = {}, 0
  for line in text.split("\n"):
    length += len(line) + 1
    key, equals, value = line.partition("=" if meta else ":")
    if equals:
      fields[key.strip()] = value.strip().lstrip("=").strip()
    if not line.strip() and not meta or key.strip() == "ElementDataFile":
      break
  if meta and "ElementDataFile" not in fields:
    raise InputError(path, "is not a MetaImage file, or is truncated", AGAIN)
  return fields, length
