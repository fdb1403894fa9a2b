"""What an image says by the standard of its format, read strictly and independently of the package.

A damaged file that the package reads is a find unless this reading accepts it, too, and gives the
same: then the damage has made another valid file, which no reader can know. Every function returns
what `describe` gives, or raises `Damaged` for a file that shows its damage: a value that the
standard excludes, a length or checksum that does not match, a field given twice.
"""

from collections.abc import Mapping
import gzip
import hashlib
import io
import math
import struct
import warnings
import zlib

import numpy as np


class Damaged(ValueError):
  """A file that shows its damage; the text says how."""


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def describe(array: np.ndarray, affine: np.ndarray) -> dict:
  """Describes a volume: shape, affine, and the digest of its voxels.

  Fractions are compared as float32, in which all computation on them is.
  """
  if array.dtype.kind == "f":
    array = array.astype(np.float32)
  values = np.ascontiguousarray(np.asarray(array, np.float64) + 0.0)  # no negative zero
  return {"shape": list(array.shape), "affine": np.asarray(affine, float).tolist(),
          "voxels": hashlib.sha256(values.tobytes()).hexdigest()}


# --- NIfTI --------------------------------------------------------------------------------------
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
                1024: "i8", 1280: "u8"}
# Offsets in NIfTI-1 and NIfTI-2: dim, datatype and bitpix, pixdim, vox_offset, slope and intercept,
# codes, quaternion and offsets, sform, units.
_NIFTI_1 = (40, "8h", 70, 76, "8f", 108, "f", 112, "2f", 252, "2h", 256, "6f", 280, "12f", 123, "b")
_NIFTI_2 = (16, "8q", 12, 104, "8d", 168, "q", 176, "2d", 344, "2i", 352, "6d", 400, "12d", 500,
            "i")
_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}


def nifti(data: bytes, compressed: bool) -> dict:
  """Reads a NIfTI file. The sform wins over the qform, as the package documents."""
  if compressed:
    try:
      data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
      raise Damaged("its stream is damaged") from error
  order, size = _nifti_kind(data)
  if not order:
    raise Damaged("its header is no header")
  (dim_at, dim_form, type_at, pixdim_at, pixdim_form, offset_at, offset_form, slope_at, slope_form,
   code_at, code_form, q_at, q_form, s_at, s_form, units_at, units_form) = (
       _NIFTI_1 if size == 348 else _NIFTI_2)
  read = lambda form, place: struct.unpack_from(order + form, data, place)
  dim, pixdim = read(dim_form, dim_at), read(pixdim_form, pixdim_at)
  (kind, bits), (slope, inter) = read("2h", type_at), read(slope_form, slope_at)
  (offset,), (qform, sform), (units,) = (read(offset_form, offset_at), read(code_form, code_at),
                                         read(units_form, units_at))
  if not 3 <= dim[0] <= 7 or min(dim[1:dim[0] + 1]) < 1 or any(n != 1 for n in dim[4:dim[0] + 1]):
    raise Damaged("its dimensions are none")
  dtype = _NIFTI_TYPES.get(kind)
  if dtype is None or bits != 8 * int(dtype[1]):
    raise Damaged("datatype and bitpix do not agree")
  # The space behind the header is for its extensions; the voxels are the end of the file.
  if not math.isfinite(offset) or offset != int(offset) or offset < size + 4:
    raise Damaged(f"its voxels start at byte {offset:g}")
  offset, count = int(offset), math.prod(dim[1:4])
  # Zeros shorter than a row may pad the end.
  padding = data[offset + count * int(dtype[1]):]
  if len(data) < offset + count * int(dtype[1]) or any(padding) or len(
      padding) >= dim[1] * int(dtype[1]):
    raise Damaged("it is not as long as its header says")
  # A qform is of no use beside a sform.
  if sform not in range(6) or not sform and qform not in range(1, 6):
    raise Damaged("its codes are undefined")
  if units & 7 not in _MM:
    raise Damaged("its units are undefined")
  affine = np.eye(4)
  if sform:
    affine[:3] = np.reshape(read(s_form, s_at), (3, 4))
  else:
    affine[:3] = _quaternion(read(q_form, q_at), pixdim)
  affine[:3] *= _MM[units & 7]
  raw = np.frombuffer(data, order + dtype, count, offset).reshape(dim[1:4], order="F")
  # nibabel writes NaN where there is no scaling.
  if slope == 0 or slope == 1 and inter == 0 or math.isnan(slope) and not abs(inter) > 0:
    array = raw
  elif not math.isfinite(slope) or not math.isfinite(inter):
    raise Damaged("its slope or intercept is not finite")
  else:
    with np.errstate(over="ignore"):
      array = (raw * np.float64(slope) + inter).astype(np.float32)
  return describe(array, affine)


def _nifti_kind(data: bytes) -> tuple[str, int]:
  """Returns byte order and size of the header; "" for none."""
  for order in "<>":
    for size, magic, place in ((348, b"n+1\0", 344), (540, b"n+2\0\r\n\x1a\n", 4)):
      if len(data) >= size and struct.unpack_from(order + "i", data)[0] == size and data[
          place:place + len(magic)] == magic:
        return order, size
  return "", 0


def _quaternion(values, pixdim) -> np.ndarray:
  """The qform by the formulas of nifti1.h; NaN where the standard excludes it."""
  b, c, d, *offsets = values
  rest = 1 - (b * b + c * c + d * d)
  if rest < -1e-6 or pixdim[0] not in (-1, 0, 1) or min(pixdim[1:4]) <= 0:
    raise Damaged("its quaternion, qfac or spacing is undefined")
  a = math.sqrt(max(rest, 0.0))
  turn = np.array([
      [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
      [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
      [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c]])
  qfac = -1 if pixdim[0] == -1 else 1
  return np.column_stack([turn * np.multiply(pixdim[1:4], (1, 1, qfac)), offsets])


# --- MetaImage and NRRD -------------------------------------------------------------------------
_META_TYPES = {"MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2",
               "MET_UINT": "u4", "MET_INT": "i4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
               "MET_ULONG_LONG": "u8", "MET_LONG_LONG": "i8"}
_NRRD_TYPES = {**dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
               **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
               **dict.fromkeys(("short", "short int", "int16", "int16_t", "signed short",
                                "signed short int"), "i2"),
               **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t",
                                "unsigned short int"), "u2"),
               **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
               **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
               "float": "f4", "double": "f8"}
_NRRD_SPACES = {"left-posterior-superior": (-1, -1), "lps": (-1, -1),
                "right-anterior-superior": (1, 1), "ras": (1, 1),
                "left-anterior-superior": (-1, 1), "las": (-1, 1)}
# Fields of no consequence here.
_NRRD_OTHER = {"kinds", "space units", "content", "labels", "units", "centers"}


def metaimage(files: Mapping[str, bytes], name: str) -> dict:
  """Reads MetaImage: fields once each, of the known values, and voxels of exactly their size."""
  header, rest = _header(files[name], " = ", b"ElementDataFile")
  if "ElementDataFile" not in header:
    raise Damaged("its header has no end")
  try:
    flag = {"true": True, "false": False}
    packed = flag[header.get("CompressedData", "False").lower()]
    big = {flag[header[key].lower()] for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
           if key in header}
    sizes = [int(n) for n in header["DimSize"].split()]
    dtype = _META_TYPES[header["ElementType"]]
    directions = np.reshape([float(x) for x in header["TransformMatrix"].split()], (3, 3))
    origin = np.array([float(x) for x in header["Offset"].split()])
    spacing = np.array([float(x) for x in header["ElementSpacing"].split()])
  except (KeyError, ValueError) as error:
    raise Damaged("a field is missing or has an unknown value") from error
  aliases = {"Position", "Origin", "Rotation", "Orientation", "ElementSize", "HeaderSize",
             "ElementToIntensityFunctionSlope"} & set(header)
  if (header.get("ObjectType") != "Image" or header.get("BinaryData") != "True" or aliases
      or header.get("NDims") != "3" or len(sizes) != 3 or min(sizes) < 1 or min(spacing) <= 0
      or header.get("ElementNumberOfChannels", "1") != "1"
      or len(big) > 1 or not big and np.dtype(dtype).itemsize > 1):
    raise Damaged("fields contradict each other or the format")
  data = rest if header["ElementDataFile"] == "LOCAL" else files.get(header["ElementDataFile"])
  if packed and data is not None:
    if header.get("CompressedDataSize", str(len(data))) != str(len(data)):
      raise Damaged("CompressedDataSize is not that of its stream")
    data = _inflated(data)
  order = ">" if True in big else "<"
  return _grid(data, order + dtype, sizes, LPS_TO_RAS, directions.T * spacing, origin)


def nrrd(files: Mapping[str, bytes], name: str) -> dict:
  """Reads NRRD: fields once each, of the known values, and voxels of exactly their size."""
  content = files[name]
  if content[:7] != b"NRRD000" or content[7:9] not in (b"1\n", b"2\n", b"3\n", b"4\n", b"5\n"):
    raise Damaged("its first line is not that of NRRD")
  header, rest = _header(content[9:], ": ", b"")
  try:
    sizes = [int(n) for n in header.pop("sizes").split()]
    dtype = _NRRD_TYPES[header.pop("type")]
    space = _NRRD_SPACES[header.pop("space").lower()]
    vectors = [[float(x) for x in v.strip("()").split(",")]
               for v in header.pop("space directions").split()]
    origin = np.array([float(x) for x in header.pop("space origin").strip("()").split(",")])
    order = {"little": "<", "big": ">"}[header.pop("endian", "little" if dtype[1] == "1" else "")]
    encoding = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}[header.pop("encoding")]
    columns = np.reshape(vectors, (3, 3)).T
  except (KeyError, ValueError) as error:
    raise Damaged("a field is missing or has an unknown value") from error
  data = files.get(header.pop("data file")) if "data file" in header else rest
  if header.pop("dimension", "") != "3" or len(sizes) != 3 or min(sizes) < 1 or len(origin) != 3:
    raise Damaged("its dimension is not 3")
  units = header.get("space units", "").split()
  if set(header) - _NRRD_OTHER or set(units) - {'"mm"'}:
    raise Damaged("a field is unknown")
  if encoding == "gzip" and data is not None:
    data = _inflated(data)
  return _grid(data, order + dtype, sizes, np.diag([*space, 1.0, 1.0]), columns, origin)


def _header(content: bytes, separator: str, last: bytes) -> tuple[dict[str, str], bytes]:
  """Returns the fields up to a blank line or a last one, and what follows."""
  fields: dict[str, str] = {}
  while content:
    line, _, content = content.partition(b"\n")
    text = line.decode("latin-1").rstrip("\r")
    if not text:
      return fields, content
    if text.startswith("#"):
      continue
    key, found, value = text.partition(separator)
    key = key.strip()
    if not found or key in fields:
      raise Damaged("a line is no field" if not found else "a field is given twice")
    fields[key] = value.strip()
    if last and key == last.decode():
      return fields, content
  return fields, b""


def _inflated(data: bytes) -> bytes:
  """Decompresses one stream of zlib or gzip that is all of the data."""
  unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
  try:
    out = unpacker.decompress(data)
  except zlib.error as error:
    raise Damaged("its stream is damaged") from error
  if not unpacker.eof or unpacker.unused_data:
    raise Damaged("its stream is not as long as the file")
  return out


def _grid(data: bytes | None, dtype: str, sizes, space, columns, origin) -> dict:
  if data is None or len(data) != math.prod(sizes) * np.dtype(dtype).itemsize:
    raise Damaged("its voxels are not as many as its header says")
  affine = np.eye(4)
  affine[:3, :3], affine[:3, 3] = columns, origin
  affine = space @ affine
  return describe(np.frombuffer(data, dtype).reshape(sizes, order="F"), affine)


# --- DICOM --------------------------------------------------------------------------------------
def dicom(files: Mapping[str, bytes]) -> dict:
  """Reads a series with pydicom: every file a whole slice, at regular places along the normal."""
  import pydicom
  slices = []
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for content in files.values():
      try:
        one = pydicom.dcmread(io.BytesIO(content))
        number = [float(one.get(k, d)) for k, d in (("RescaleSlope", 1), ("RescaleIntercept", 0))]
        position, directions, spacing = (
            np.array(list(map(float, one[name].value))) for name in (
                "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
        shape, bits = (one.Rows, one.Columns), one.BitsAllocated
        if (bits not in (8, 16) or len(one.PixelData) != math.prod(shape) * bits // 8
            or not one.file_meta.TransferSyntaxUID.is_little_endian
            or one.file_meta.TransferSyntaxUID.is_compressed or one.get("NumberOfFrames", 1) != 1
            or one.SamplesPerPixel != 1 or one.HighBit != one.BitsStored - 1
            or not 0 < one.BitsStored <= bits or not np.isfinite(number).all()
            or one.PhotometricInterpretation != "MONOCHROME2"):
          raise Damaged("elements contradict each other or the pixels")
        raw = np.frombuffer(one.PixelData, f"<{'ui'[one.PixelRepresentation]}{bits // 8}")
        low, high = ((0, 2**one.BitsStored - 1) if not one.PixelRepresentation else
                     (-(2 ** (one.BitsStored - 1)), 2 ** (one.BitsStored - 1) - 1))
        if raw.min() < low or raw.max() > high:
          raise Damaged("pixels have more bits than BitsStored")
        array = (raw.astype(np.float64) * number[0] + number[1]).reshape(shape).T
        slices.append((position, directions, spacing, array, str(one.SeriesInstanceUID)))
      except Damaged:
        raise
      except Exception as error:  # pydicom raises many kinds on damaged files
        raise Damaged("a file is no readable slice") from error
  position, directions, spacing, array, series = slices[0]
  if any(s[4] != series or s[3].shape != array.shape or not np.allclose(s[1], directions, atol=1e-4)
         or not np.allclose(s[2], spacing, rtol=1e-4, atol=1e-4) for s in slices):
    raise Damaged("slices do not belong together")
  across, down = directions[:3], directions[3:]
  normal = np.cross(across, down)
  slices.sort(key=lambda s: float(normal @ s[0]))
  gaps = np.diff([float(normal @ s[0]) for s in slices])
  if len(gaps) == 0 or gaps.min() <= 0 or np.ptp(gaps) > 0.1 * np.median(gaps):
    raise Damaged("slices are not at regular places")
  affine = np.eye(4)
  affine[:3] = np.stack([across * spacing[1], down * spacing[0],
                         (slices[-1][0] - slices[0][0]) / len(gaps), slices[0][0]], axis=1)
  return describe(np.stack([s[3] for s in slices], axis=-1), LPS_TO_RAS @ affine)
