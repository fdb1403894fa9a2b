"""MetaImage (.mhd with its .raw, .mha) and NRRD (.nrrd, .nhdr) to `Volume`, by SimpleITK.

SimpleITK fills what a header leaves out: spacing 1, origin 0, axes of the patient. Here a file that
does not say where its voxels lie is refused, and the file that a header points to must lie beside
it.

Formats: https://itk.org/Wiki/ITK/MetaIO/Documentation and
https://teem.sourceforge.net/nrrd/format.html
"""

import math
import os
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import Header, check_finite
from condseg_jax.geometry import Geometry, Volume, check_affine

SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
DTYPES = {
  sitk.sitkUInt8: np.uint8, sitk.sitkInt8: np.int8, sitk.sitkUInt16: np.uint16,
  sitk.sitkInt16: np.int16, sitk.sitkUInt32: np.uint32, sitk.sitkInt32: np.int32,
  sitk.sitkUInt64: np.uint64, sitk.sitkInt64: np.int64, sitk.sitkFloat32: np.float32,
  sitk.sitkFloat64: np.float64,
}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What MetaImage may call the three parts of a geometry.
META_GEOMETRY = (("TransformMatrix", "Rotation", "Orientation"), ("Offset", "Position", "Origin"),
                 ("ElementSpacing", "ElementSize"))
NRRD_GEOMETRY = (("space", "space dimension"), ("space directions",), ("space origin",))
META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4,
              "ULONG": 4, "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
HEADER_LIMIT = 1 << 20
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
  fields = _fields(path)
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


def _reader(path: Path) -> sitk.ImageFileReader:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("MetaImageIO" if path.suffix.lower() in (".mhd", ".mha") else "NrrdImageIO")
  reader.SetFileName(str(path))
  return reader


def _check_header(path: Path) -> None:
  """What SimpleITK would let pass."""
  fields = _fields(path)
  meta = path.suffix.lower() in (".mhd", ".mha")
  dimensions = fields.get("NDims" if meta else "dimension", "")
  sizes = fields.get("DimSize" if meta else "sizes", "").split()
  if not dimensions.isdigit() or len(sizes) != int(dimensions) or not all(map(str.isdigit, sizes)):
    raise InputError(path, "header does not say its size", AGAIN)
  if int(dimensions) != 3:
    cure = "name one volume" if int(dimensions) > 3 else "store a slice with a third axis of 1"
    raise InputError(path, f"{dimensions}-D, size {' '.join(sizes)}", cure,
                     kind="4-D" if int(dimensions) > 3 else "2-D")
  for names in META_GEOMETRY if meta else NRRD_GEOMETRY:
    if not any(name in fields for name in names):
      raise InputError(path, f"header has no {names[0]}: it does not say where its voxels lie",
                       f"add {names[0]} to the header, or convert the original again",
                       kind="affine")
  members = sitk_members(path)
  width = META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"), 0)
  if len(members) == 2 and fields.get("CompressedData", "False").lower() != "true":
    wanted = math.prod(map(int, sizes)) * width
    if members[1].stat().st_size < wanted:
      raise InputError(path, f"is truncated: {members[1].name} has {members[1].stat().st_size} of "
                       f"{wanted} bytes", AGAIN, kind="truncated")


def _fields(path: Path) -> dict[str, str]:
  """The header's `key = value` or `key: value` lines."""
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", "name the image in it")
  with path.open("rb") as stream:
    text = stream.read(HEADER_LIMIT).decode("latin-1")
  if not text:
    raise InputError(path, "is empty (0 bytes)", AGAIN)
  meta = path.suffix.lower() in (".mhd", ".mha")
  if not meta and not text.startswith("NRRD"):
    raise InputError(path, "is not a NRRD file", "convert it, or name it by its format")
  fields = {}
  for line in text.splitlines():
    key, equals, value = line.partition("=" if meta else ":")
    if equals:
      fields[key.strip()] = value.strip().lstrip("=").strip()
    if not line.strip() and not meta or key.strip() == "ElementDataFile":
      break
  if meta and "ElementDataFile" not in fields:
    raise InputError(path, "is not a MetaImage file, or is truncated", AGAIN)
  return fields
