"""Mutations of bytes, and of the fields of binary formats."""

import io
import random
import re
import struct
import warnings

import nibabel
import numpy as np

from tools.fuzz.packing import BROKEN
from tools.fuzz.packing import Impossible
from tools.fuzz.packing import opened
from tools.fuzz.packing import zip_content
from tools.fuzz.packing import zipped


# --- bytes --------------------------------------------------------------------------------------
def draw_bytes(rng: random.Random, content: bytes) -> tuple:
  """Draws a change of any bytes, half of the time near the start, where headers are."""
  size = len(content)
  if not size:
    raise Impossible("empty")
  # Headers are small beside the voxels, and matter more.
  near = min(size, 600) if rng.random() < 0.5 else size
  start = rng.randrange(near)
  length = min(size - start, rng.choice((1, 2, 4, 8, 64, 1000)))
  do = rng.choice(("flip",) * 4 + ("cut",) * 2 + ("drop", "repeat", "put", "zero", "insert",
                                                  "grow"))
  if do == "flip":
    return do, start, rng.randrange(8)
  if do == "cut":
    return do, rng.choice((0, 1, start, size - 1 - rng.randrange(min(size, 32))))
  if do in ("put", "insert"):
    return do, start, rng.randbytes(rng.choice((1, 2, 4, 8))).hex()
  if do == "grow":
    return do, rng.randbytes(rng.choice((1, 16, 1000))).hex()
  return do, start, length


def flip(content: bytes, place: int, bit: int) -> bytes:
  """Flips a bit."""
  if place >= len(content):
    raise Impossible("flip")
  return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1:]


def put(content: bytes, start: int, text: str) -> bytes:
  """Overwrites bytes by others, in hexadecimal."""
  new = bytes.fromhex(text)
  return content[:start] + new + content[start + len(new):]


# --- header of NIfTI ----------------------------------------------------------------------------
def _header_type(content: bytes) -> np.dtype:
  for order in "<>":
    for dtype in (nibabel.nifti1.header_dtype, nibabel.nifti2.header_dtype):
      dtype = dtype.newbyteorder(order)
      size = np.array(dtype.itemsize, f"{order}i4").tobytes()
      if len(content) >= dtype.itemsize and content[:4] == size:
        return dtype
  raise Impossible("header")


def draw_field(rng: random.Random, content: bytes) -> tuple:
  """Draws a value at the edge of a field of a NIfTI header."""
  dtype = _header_type(content)
  name = rng.choice([n for n in dtype.names if dtype[n].base.kind in "iuf"])
  base, shape = dtype[name].base, dtype[name].shape
  index = rng.randrange(shape[0]) if shape else 0
  header = np.frombuffer(content[:dtype.itemsize], dtype)[0]
  now = header[name][index] if shape else header[name]
  if base.kind == "f":
    value = rng.choice(("nan", "inf", "-inf", "0", "-1", "1e30", "1e-30", "77", repr(
        float(now) * 1.01), repr(-float(now)), repr(float(now) + 0.5), repr(float(now) - 16)))
  else:
    info = np.iinfo(base)
    value = str(rng.choice((0, 1, 2, 3, 4, 5, 77, info.min, info.max, int(now) ^ 1 << rng.randrange(
        info.bits - 1), max(int(now) - 1, info.min), min(int(now) + 1, info.max))))
    value = str(min(max(int(value), info.min), info.max))
  return "field", name, index, value


def field(content: bytes, name: str, index: int, value: str) -> bytes:
  """Sets a field of a NIfTI header, of either version and byte order."""
  dtype = _header_type(content)
  if name not in dtype.names:
    raise Impossible(name)
  header = np.frombuffer(content[:dtype.itemsize], dtype).copy()
  number = float(value) if dtype[name].base.kind == "f" else int(value)
  with np.errstate(over="ignore"):
    if dtype[name].shape:
      header[name][0, index] = number
    else:
      header[name] = number
  return header.tobytes() + content[dtype.itemsize:]


# --- DICOM --------------------------------------------------------------------------------------
def draw_element(rng: random.Random, content: bytes) -> tuple:
  """Draws a change of a DICOM element."""
  dataset = _dataset(content)
  keywords = [e.keyword for e in dataset if e.keyword]
  if not keywords:
    raise Impossible("dicom")
  keyword = rng.choice(keywords)
  if rng.random() < 0.15:
    return "element", keyword, "remove", ""
  return "element", keyword, "text", rng.choice((
      "", "0", "-1", "1", "2", "3", "7", "12", "13", "16", "255", "65535", "nan", "inf", "1e30",
      "-0.5", "0\\0", "0.7\\0.8", "-1\\1", "nan\\1", "9\\9\\9", "1e20\\0\\0", "0\\0\\0",
      "1\\0\\0\\0\\1\\0", "1\\0\\0\\1\\0\\0", "0\\0\\0\\0\\0\\0", "0\\1\\0\\1\\0\\0", "1.2.840.9",
      "x" * 70, "../../up", "MONOCHROME1", "RGB", "MR", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2",
      "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.90"))


def _dataset(content: bytes):
  import pydicom
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      dataset = pydicom.dcmread(io.BytesIO(content))
      list(dataset)
      return dataset
    except Exception as error:  # pydicom raises many kinds on damaged files
      raise Impossible("dicom") from error


def element(content: bytes, keyword: str, how: str, text: str) -> bytes:
  """Removes a DICOM element, or sets it to a text, valid or not."""
  dataset = _dataset(content)
  if keyword not in dataset:
    raise Impossible(keyword)
  import pydicom
  element = dataset[keyword]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      if how == "remove":
        del dataset[keyword]
      elif element.VR in ("US", "SS", "UL", "SL"):
        element.value = int(float(text)) & 0xFFFF
      elif element.VR in ("OW", "OB"):
        element.value = element.value[:-2] if text in ("", "0") else element.value + bytes(2)
      else:  # as it is, though the standard forbids it
        dataset[keyword] = pydicom.dataelem.RawDataElement(
            element.tag, element.VR, len(text), (text + " " * (len(text) % 2)).encode(), 0, False,
            True)
      stream = io.BytesIO()
      dataset.save_as(stream, enforce_file_format=False)
    except Exception as error:
      raise Impossible(keyword) from error
  return stream.getvalue()


# --- zip archives -------------------------------------------------------------------------------
def draw_member(rng: random.Random, content: bytes) -> tuple:
  """Draws a change of a member of a zip archive."""
  with opened(content) as archive_file:
    count = len(archive_file.infolist())
  if not count:
    raise Impossible("zip")
  number = rng.randrange(count)
  do = rng.choice(("rename", "rename", "again", "link", "lie", "lie", "remove"))
  if do == "rename":
    return "member", do, number, rng.choice((
        "../up.txt", "../../up.txt", "/nowhere/up.txt", "c:\\up.txt", "..\\up.txt", "a/../../up",
        "x" * 300, "d/" * 200 + "x", "a\nb", "", ".", "\xe9t\xe9", "data", "data/x", "__MACOSX/x",
        "con.", "a\0b"))
  if do == "lie":
    field = rng.choice(("crc", "compressed", "size", "offset", "method", "flags"))
    return "member", do, number, rng.choice(("central", "local")), field, rng.choice(
        (0, 1, 2, 7, 8, 99, 2**16 - 1, 2**31 - 1, 2**32 - 1))
  return "member", do, number


# Offsets and formats of fields in the entry of the central directory, and in the local header.
_FIELDS = {"central": {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"),
                       "compressed": (20, "<I"), "size": (24, "<I"), "offset": (42, "<I")},
           "local": {"flags": (6, "<H"), "method": (8, "<H"), "crc": (14, "<I"),
                     "compressed": (18, "<I"), "size": (22, "<I"), "offset": (26, "<H")}}


def member(content: bytes, do: str, number: int, *arguments) -> bytes:
  """Renames, doubles, links or removes a member, or sets a field of its headers."""
  with opened(content):
    pass
  if do == "lie":
    where, field, value = arguments
    signature = b"PK\x01\x02" if where == "central" else b"PK\x03\x04"
    starts = [match.start() for match in re.finditer(re.escape(signature), content)]
    if not starts:
      raise Impossible("lie")
    offset, form = _FIELDS[where][field]
    new = bytearray(content)
    limit = 2 ** (8 * struct.calcsize(form)) - 1
    try:
      struct.pack_into(form, new, starts[number % len(starts)] + offset, min(value, limit))
    except struct.error as error:
      raise Impossible("lie") from error
    return bytes(new)
  try:
    members = zip_content(content)
  except BROKEN as error:
    raise Impossible("zip") from error
  if number >= len(members):
    raise Impossible("zip")
  info, inner = members[number]
  if do == "remove":
    del members[number]
  elif do == "again":
    members.append((info, inner[::-1]))
  elif do == "link":
    info.external_attr = 0o120777 << 16
    members[number] = info, b"/etc/passwd"
  else:
    info.filename = arguments[0]
  try:
    return zipped(members)
  except (ValueError, struct.error, UnicodeEncodeError) as error:
    raise Impossible("zip") from error


# --- arrays of a bundle -------------------------------------------------------------------------
def draw_array(rng: random.Random, content: bytes) -> tuple:
  """Draws a change of a .npy file."""
  if rng.random() < 0.4:
    return draw_bytes(rng, content)
  return "number", rng.randrange(1000), rng.choice(("nan", "inf", "-inf", "1e38", "1", "0"))


def number(content: bytes, index: int, value: str) -> bytes:
  """Sets a number of a .npy file of float32."""
  start = content.find(b"}") + 1
  start += (-start) % 64
  count = (len(content) - start) // 4
  if start <= 0 or count < 1:
    raise Impossible("array")
  place = start + 4 * (index % count)
  return content[:place] + struct.pack("<f", float(value)) + content[place + 4:]
