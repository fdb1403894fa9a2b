"""MetaImage (.mhd with its .raw, .mha) and NRRD (.nrrd, .nhdr) to `Volume`, by SimpleITK.

SimpleITK fills what a header leaves out or garbles: spacing 1, origin 0, axes of the patient. And
it takes whatever a damaged stream unpacks to. Here a file that does not say where its voxels lie is
refused, compressed voxels are checked, and the file that a header points to must lie beside it.

Formats: https://itk.org/Wiki/ITK/MetaIO/Documentation and
https://teem.sourceforge.net/nrrd/format.html
"""

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
# What MetaImage may call the three parts of a geometry.
META_GEOMETRY = {("TransformMatrix", "Rotation", "Orientation"): 9,
                 ("Offset", "Position", "Origin"): 3, ("ElementSpacing", "ElementSize"): 3}
NRRD_GEOMETRY = {("space",): 0, ("space directions",): 9, ("space origin",): 3}
# Other spaces of NRRD do not say where the patient's left is; SimpleITK would take them for LPS.
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
    path: see `SUFFIXES`; three dimensions.

  Returns:
    Volume in file axis order (x, y, z as stored), affine in RAS+ mm.

  Raises:
    InputError: missing, damaged or foreign file; 2-D or 4-D; several numbers per voxel; no
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
  """Shape and affine from the header alone.

  Raises:
    InputError: as `read_sitk`, as far as the header tells.
  """
  path = Path(path)
  _check_header(path)
  reader = _reader(path)
  try:
    reader.ReadImageInformation()
  except RuntimeError as error:
    raise InputError(path, f"header is broken ({last_line(error)})", AGAIN) from error
  if reader.GetNumberOfComponents() > 1 or reader.GetPixelIDValue() not in DTYPES:
    raise InputError(path, f"{reader.GetNumberOfComponents()} numbers per voxel",
                     "convert it to one number per voxel, e.g. grey value")
  affine = np.eye(4)
  affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
  affine[:3, 3] = reader.GetOrigin()
  affine = LPS_TO_RAS @ affine
  check_affine(affine, path)
  check_directions(np.reshape(reader.GetDirection(), (3, 3)).T, path)
  shape = tuple(reader.GetSize())
  # SimpleITK's own copy and numpy's.
  size = 2 * math.prod(shape) * np.dtype(DTYPES[reader.GetPixelIDValue()]).itemsize
  return Header(Geometry(shape, affine), size)


def sitk_members(path: str | os.PathLike) -> list[Path]:
  """The files that an image consists of: the header, and the voxels if they lie apart.

  Raises:
    InputError: the voxels are missing, or lie elsewhere.
  """
  path = Path(path)
  fields = _fields(path)[0]
  data = fields.get("ElementDataFile") or fields.get("data file") or fields.get("datafile")
  if not data or data.upper() == "LOCAL":
    return [path]
  if re.search(r"[/\\%\s]", data) or data.upper() == "LIST":
    raise InputError(path, f"keeps its voxels in {data!r}, not in one file beside it",
                     "convert it to one file, e.g. .mha or .nrrd")
  if not (path.parent / data).exists():
    raise InputError(path, f"the file of its voxels, {data}, is missing", AGAIN)
  return [path, path.parent / data]


def last_line(error: RuntimeError) -> str:
  """The line in which SimpleITK's exceptions name the cause."""
  line = str(error).strip().splitlines()[-1]
  return line.rpartition("): ")[2] or line


def check_directions(directions, subject) -> None:
  """Raises InputError for axes, in rows, that are no unit vectors: spacing would not be one."""
  lengths = np.linalg.norm(directions, axis=1)
  if np.abs(lengths - 1).max() > MAX_LENGTH_ERROR:
    told = " x ".join(f"{x:.4g}" for x in lengths)
    raise InputError(subject, f"its direction vectors have the lengths {told}, not 1",
                     "correct the header, or convert the original again", kind="direction")


def _reader(path: Path) -> sitk.ImageFileReader:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("MetaImageIO" if _is_meta(path) else "NrrdImageIO")
  reader.SetFileName(str(path))
  return reader


def _check_header(path: Path) -> None:
  """What SimpleITK would let pass."""
  fields, start = _fields(path)
  meta = _is_meta(path)
  dimensions = fields.get("NDims" if meta else "dimension", "")
  sizes = fields.get("DimSize" if meta else "sizes", "").split()
  if not dimensions.isdigit() or len(sizes) != int(dimensions) or not all(map(_positive, sizes)):
    raise InputError(path, "header does not say its size", AGAIN)
  if int(dimensions) != 3:
    cure = "name one volume" if int(dimensions) > 3 else "store a slice with a third axis of 1"
    raise InputError(path, f"{dimensions}-D, size {' '.join(sizes)}", cure,
                     kind="4-D" if int(dimensions) > 3 else "2-D")
  for names, count in (META_GEOMETRY if meta else NRRD_GEOMETRY).items():
    name = next((name for name in names if name in fields), names[0])
    if name not in fields:
      raise InputError(path, f"header has no {name}: it does not say where its voxels lie",
                       f"add {name} to the header, or convert the original again", kind="affine")
    if count and len(_numbers(fields[name])) != count:
      raise InputError(path, f"header has {name} {fields[name]!r}, not {count} finite numbers",
                       "correct the header, or convert the original again", kind="affine")
  units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm"}
  if not meta and (fields["space"].lower() not in NRRD_SPACES or units):
    told = f"in {', '.join(sorted(units))}" if units else f"in the space {fields['space']!r}"
    raise InputError(path, f"places its voxels {told}, not along the axes of a patient in mm",
                     "convert it to the space left-posterior-superior", kind="affine")
  spacing = _numbers(fields.get("ElementSpacing") or fields.get("ElementSize", ""))
  if meta and min(spacing) <= 0:
    raise InputError(path, f"spacing {spacing} mm", "correct ElementSpacing in the header")
  width = META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"), 0)
  if fields.get("CompressedData", "False").lower() != "true":
    data = sitk_members(path)[-1]
    wanted = math.prod(map(int, sizes)) * width
    found = data.stat().st_size - (start if data == path else 0)
    if found < wanted:
      raise InputError(path, f"is truncated: {data.name} has {found} of {wanted} bytes", AGAIN,
                       kind="truncated")


def _check_compressed(path: Path) -> None:
  """Compares compressed voxels with the checksum at their end, as MetaImage's reader does not."""
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
      raise InputError(path, f"compressed voxels are damaged ({error})", AGAIN,
                       kind="truncated") from error
  if not unpacker.eof:
    raise InputError(path, "is truncated: its compressed voxels end too early", AGAIN,
                     kind="truncated")


def _is_meta(path: Path) -> bool:
  return path.suffix.lower() in (".mhd", ".mha")


def _positive(text: str) -> bool:
  return text.isdigit() and int(text) > 0


def _numbers(text: str) -> tuple[float, ...]:
  """The finite numbers in a field such as `1 0 2` or `(1,0,0) (0,1,0)`; () if it is none."""
  try:
    values = tuple(float(x) for x in re.sub(r"[(),]", " ", text).split())
  except ValueError:
    return ()
  return values if all(map(math.isfinite, values)) else ()


def _fields(path: Path) -> tuple[dict[str, str], int]:
  """The header's `key = value` or `key: value` lines, and how many bytes it takes."""
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", "name the image in it")
  with path.open("rb") as stream:
    text = stream.read(HEADER_LIMIT).decode("latin-1")
  if not text:
    raise InputError(path, "is empty (0 bytes)", AGAIN)
  meta = _is_meta(path)
  if not meta and not text.startswith("NRRD"):
    raise InputError(path, "is not a NRRD file", "convert it, or name it by its format")
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
