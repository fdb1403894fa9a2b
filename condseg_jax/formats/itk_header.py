"""The headers of MetaImage and NRRD: fields, their checks, and where the voxels are stored.

SimpleITK replaces missing or invalid header fields by defaults (spacing 1, origin 0, axes of the
patient), joins a line that is no field with the next one, and ignores what follows the voxels. Long
fields crash it. Headers of anything but valid fields, given once, and files without a complete
geometry are refused here, before it reads them; data files must be in the folder of the header, and
have exactly the size that it declares.

Formats: https://itk.org/Wiki/ITK/MetaIO/Documentation and
https://teem.sourceforge.net/nrrd/format.html
"""

import math
import os
from pathlib import Path
import re
from typing import NamedTuple

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import check_file
from condseg_jax.formats.voxels import CORRECT

# Alternative names of the fields of MetaImage's geometry → number of values.
META_GEOMETRY = {("TransformMatrix", "Rotation", "Orientation"): 9,
                 ("Offset", "Position", "Origin"): 3, ("ElementSpacing", "ElementSize"): 3}
# Fields that MetaIO reads only after NDims.
META_SIZED = {"DimSize", *(name for names in META_GEOMETRY for name in names)}
META_TYPES = {f"MET_{name}" for name in (
    "CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG", "ULONG_LONG",
    "FLOAT", "DOUBLE")}
META_BYTE_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
NRRD_GEOMETRY = {("space",): 0, ("space directions",): 9, ("space origin",): 3}
# Other NRRD spaces do not define the patient's left; SimpleITK would read them as LPS.
NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras",
               "left-anterior-superior", "las")
NRRD_PACKED = ("gz", "gzip")
HEADER_LIMIT = 1 << 20
# Bytes of a field; SimpleITK crashes from about 1,000 on. DICOM elements that it stores in
# MetaImage, e.g. `0008|0060`, and key/value pairs of NRRD may be longer.
MAX_FIELD = 500
MAX_ELEMENT = 1 << 14
# Python reads as numbers what SimpleITK does not, e.g. 1_0.
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
WHOLE = re.compile(r"[0-9]+")
KEY = re.compile(r"[A-Za-z0-9_|][ -9;-~]*")
CONTROL = re.compile(r"[^\t\r\x1b -\xff]")  # escapes switch the character set of a DICOM text


class Stored(NamedTuple):
  """The stored voxels of an image.

  Attributes:
    path: the file that contains them.
    start: position of their first byte, or of the first compressed byte.
    size: in bytes, when unpacked.
    packed: compressed with zlib or gzip.
  """

  path: Path
  start: int
  size: int
  packed: bool


def member_paths(path: str | os.PathLike) -> list[Path]:
  """Returns the files of which an image consists: the header, and the data file if there is one.

  Raises:
    InputError: the data file is missing, or not in the folder of the header.
  """
  path = Path(path)
  fields = _fields(path)[0]
  data = next((fields[name] for name in ("ElementDataFile", "data file", "datafile")
               if name in fields), None)
  if data is None or is_meta(path) and data in ("LOCAL", "Local", "local"):
    return [path]
  if not data or re.search(r"[/\\%\s]", data) or data.upper() == "LIST":
    raise InputError(path, f"refers to the data {data!r}, not to one file in the same folder",
                     "convert it to one file, e.g. .mha or .nrrd")
  if not (path.parent / data).exists():
    raise InputError(path, f"its data file {data} is missing", AGAIN)
  check_file(path.parent / data)
  return [path, path.parent / data]


def check_header(path: Path) -> None:
  """Checks what SimpleITK does not check."""
  fields, start = _fields(path)
  meta = is_meta(path)
  if meta:
    _check_meta(path, fields)
  elif fields.get("encoding", "").lower() not in ("raw", *NRRD_PACKED):
    raise InputError(path, f"has the encoding {fields.get('encoding', '')!r}",
                     "convert it to raw or gzip")
  dimensions = fields.get("NDims" if meta else "dimension", "")
  sizes = _words(fields.get("DimSize" if meta else "sizes", ""))
  if not _positive(dimensions) or len(sizes) != int(dimensions) or not all(map(_positive, sizes)):
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
    numbers = fields[name] if meta else re.sub(r"[(),]", " ", fields[name])
    if count and len(_numbers(numbers)) != count:
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
  member_paths(path)


def _check_meta(path: Path, fields: dict[str, str]) -> None:
  """Checks fields of which MetaIO takes any value, or on which it prints lines of its own."""
  if fields.get("ObjectType", "Image") != "Image":
    raise InputError(path, f"contains the object {fields['ObjectType']!r}, not an image",
                     "give the image")
  names = list(fields)
  if "NDims" in fields and META_SIZED & set(names[:names.index("NDims")]):
    raise InputError(path, "has no valid size in its header: NDims must come first", CORRECT)
  if fields.get("ElementType") not in META_TYPES:
    raise InputError(path, f"has the voxel type {fields.get('ElementType', '')!r}", CORRECT)
  for aliases in (*META_GEOMETRY, META_BYTE_ORDER):
    given = [name for name in aliases if name in fields]
    if len({fields[name] for name in given}) > 1:
      raise InputError(path, f"has contradictory fields: {' and '.join(given)}", CORRECT)
  # MetaIO would assume little-endian.
  if fields["ElementType"] not in ("MET_CHAR", "MET_UCHAR") and not set(META_BYTE_ORDER) & set(
      fields):
    raise InputError(path, f"does not state the byte order of its voxels: no {META_BYTE_ORDER[0]} "
                     "in its header", f"add {META_BYTE_ORDER[0]} = False, or True if big-endian")
  for name in ("BinaryData", "CompressedData", *META_BYTE_ORDER):
    if fields.get(name, "True").lower() not in ("true", "false"):
      raise InputError(path, f"{name} is {fields[name]!r}, not True or False", CORRECT)
  for name in ("HeaderSize", "CompressedDataSize"):
    if not re.fullmatch("-?[0-9]+", fields.get(name, "0")):
      raise InputError(path, f"{name} is {fields[name]!r}, not a whole number", CORRECT)


def find_stored(path: Path, size: int) -> Stored:
  """Finds the stored voxels and checks their size, as far as possible without unpacking them.

  Args:
    path: the header.
    size: of the voxels in bytes, from the header.
  """
  fields, header_bytes = _fields(path)
  members = member_paths(path)
  data, local = members[-1], header_bytes if len(members) == 1 else 0
  if is_meta(path):
    stored = _stored_in_meta(path, fields, data, local, size)
  else:
    stored = _stored_in_nrrd(path, fields, data, local, size)
  available = data.stat().st_size - max(stored.start, local)
  if available < (1 if stored.packed else size):
    raise InputError(path, f"is truncated: {data.name} has {max(available, 0)} of {size} bytes",
                     AGAIN, kind="truncated")
  if not stored.packed and available > size:
    raise InputError(path, f"has {available} bytes of voxels in {data.name}, but {size} according "
                     "to its header", CORRECT, kind="size")
  return stored


def _stored_in_meta(path: Path, fields: dict[str, str], data: Path, local: int,
                    size: int) -> Stored:
  """Returns where ITK reads the voxels of a MetaImage.

  Args:
    path: the header.
    fields: of the header.
    data: the data file.
    local: size of the header in the data file.
    size: of the voxels in bytes.
  """
  if fields.get("BinaryData", "True").lower() == "false":
    raise InputError(path, "stores its voxels as text", "convert it to binary data")
  total = data.stat().st_size
  skip = (_numbers(fields.get("HeaderSize", "")) or (0,))[0]
  if 0 < skip < local:
    raise InputError(path, f"HeaderSize is {skip:g}, but the header has {local} bytes", CORRECT)
  start = total - size if skip == -1 else int(skip) if skip > 0 else local
  if fields.get("CompressedData", "False").lower() == "false":
    return Stored(data, start, size, packed=False)
  # Without the field, ITK unpacks the whole file, the header included if it is in the same file.
  declared, available = fields.get("CompressedDataSize", ""), total - start
  expected = (_numbers(declared) or (total,))[0]
  if available != expected:
    reason = ("its header has no CompressedDataSize for its compressed voxels" if not declared else
              f"has {available} bytes of compressed voxels, but CompressedDataSize is {declared}")
    raise InputError(path, reason, CORRECT,
                     kind="truncated" if available < expected else "size")
  return Stored(data, start, size, packed=True)


def _stored_in_nrrd(path: Path, fields: dict[str, str], data: Path, local: int,
                    size: int) -> Stored:
  """Returns where ITK reads the voxels of a NRRD; arguments as in `_stored_in_meta`."""
  packed = fields["encoding"].lower() in NRRD_PACKED
  lines, skip = (fields.get(name) or fields.get(name.replace(" ", "")) or "0"
                 for name in ("line skip", "byte skip"))
  if lines != "0":
    raise InputError(path, "skips lines of its data file", "give their bytes as byte skip")
  if skip == "-1" and not packed:  # the end of the file
    return Stored(data, data.stat().st_size - size, size, packed)
  if not WHOLE.fullmatch(skip):
    raise InputError(path, f"has the byte skip {skip}", CORRECT)
  # Compressed bytes are skipped after unpacking.
  return Stored(data, local + int(skip) * (not packed), size + int(skip) * packed, packed)


def is_meta(path: Path) -> bool:
  return path.suffix.lower() in (".mhd", ".mha")


def _positive(text: str) -> bool:
  return WHOLE.fullmatch(text) is not None and int(text) > 0


def _words(text: str) -> list[str]:
  return re.split("[ \t]+", text.strip(" \t\r"))


def _numbers(text: str) -> tuple[float, ...]:
  """Returns the finite numbers in a field such as `1 0 2`; () otherwise."""
  words = _words(text)
  if not all(map(NUMBER.fullmatch, words)):
    return ()
  values = tuple(map(float, words))
  return values if all(map(math.isfinite, values)) else ()


def _fields(path: Path) -> tuple[dict[str, str], int]:
  """Returns the `key = value` or `key: value` lines of the header, and its size in bytes."""
  check_file(path)
  with path.open("rb") as stream:
    text = stream.read(HEADER_LIMIT).decode("latin-1")
  if not text:
    raise InputError(path, "is empty (0 bytes)", AGAIN)
  meta = is_meta(path)
  if not meta and not text.startswith("NRRD"):
    raise InputError(path, "is not a NRRD file", "convert it, or use the suffix of its format")
  lines = text.split("\n")
  fields, length = {}, 0
  if not meta:  # the first line is the version
    length = len(lines.pop(0)) + 1
  for number, line in enumerate(lines, 1 if meta else 2):
    length += len(line) + 1
    key, value = _field(path, number, line, "=" if meta else ":")
    if key in fields:
      raise InputError(path, f"{key[:40]} is given twice in its header", CORRECT)
    if key:
      fields[key] = value
    if not line.strip() and not meta or key == "ElementDataFile":
      break
  if meta and "ElementDataFile" not in fields:
    raise InputError(path, "is not a MetaImage file, or is truncated", AGAIN)
  return fields, length


def _field(path: Path, number: int, line: str, separator: str) -> tuple[str, str]:
  """Returns key and value of a line of the header; ("", "") if it is blank or a comment."""
  if not line.strip() or separator == ":" and line.startswith("#"):
    return "", ""
  key, found, value = line.partition(separator)
  key = key.strip(" \t") if separator == "=" else key.strip(" \t").lower()
  if separator == ":" and value.startswith("="):  # free text, with a name
    return "", ""
  if not found or not KEY.fullmatch(key) or CONTROL.search(value):
    form = "key = value" if separator == "=" else "key: value"
    raise InputError(path, f"line {number} of its header is not {form!r}", AGAIN)
  if len(line) > (MAX_ELEMENT if "|" in key else MAX_FIELD):
    raise InputError(path, f"line {number} of its header has {len(line)} bytes", CORRECT)
  return key, value.strip(" \t\r")
