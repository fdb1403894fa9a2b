"""Checks that a DICOM file contains the pixel data that its header declares.

GDCM does not: missing pixels are whatever the memory contained, surplus ones are ignored. Its
interface does not give access to pixel data, so that they are located here. JPEG and JPEG 2000 need
no check of their size: GDCM takes it from the compressed data.

Standard: DICOM PS3.5, 7 (data elements), A.4 (encapsulated pixel data) and G (RLE).
"""

import math
from pathlib import Path
import struct
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import AGAIN

PREAMBLE = 128
TRANSFER_SYNTAX = (0x0002, 0x0010)
PIXEL_DATA = (0x7FE0, 0x0010)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
UNDEFINED = 0xFFFFFFFF  # length of elements that end with a delimiter
IMPLICIT = ("1.2.840.10008.1.2", "1.2.840.113619.5.2")
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
RLE_HEADER, RLE_SEGMENTS = 64, 15  # bytes, maximal number
# Value representations whose length has four bytes after two reserved ones.
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
FRAME_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # of JPEG and JPEG-LS, of JPEG 2000


class _Element(NamedTuple):
  tag: tuple[int, int]
  representation: bytes
  length: int


class _Pixels(NamedTuple):
  """Pixel data in a file.

  Attributes:
    start: position of the pixels, or of the first compressed fragment.
    size: of them in bytes.
    frames: number of compressed frames; 0 for uncompressed pixels.
    syntax: transfer syntax of the file.
  """

  start: int
  size: int
  frames: int
  syntax: str


def check_pixels(path: Path, columns: int, rows: int, bits: int, *, stored: int = 0,
                 signed: bool = False) -> None:
  """Checks the pixel data of a file with one frame of grey values.

  Files without a preamble and deflated ones are not checked.

  Args:
    path: a file that GDCM can read.
    columns: of the image.
    rows: of the image.
    bits: allocated per pixel.
    stored: bits of a pixel that are used, from the lowest; 0 to leave their values unchecked.
    signed: whether the highest of these is the sign.

  Raises:
    InputError: there are fewer or more pixels, or uncompressed ones use more bits.
  """
  with path.open("rb") as stream:
    try:
      pixels = _find(stream)
    except (struct.error, UnicodeDecodeError, IndexError):
      pixels = None
    if pixels is None:
      return
    if pixels.frames > 1:
      raise InputError(path, f"contains {pixels.frames} compressed frames, but declares one",
                       "split it into single slices, or convert it, e.g. with dcm2niix",
                       kind="size")
    if pixels.syntax == RLE:
      stream.seek(pixels.start)
      _check_rle(path, stream.read(pixels.size), columns * rows, bits // 8)
    elif not pixels.frames:
      size = math.ceil(columns * rows * bits / 8)
      _check_native(path, stream, pixels, math.ceil(columns * bits / 8), size)
      if 0 < stored < bits and bits in (8, 16, 32):
        stream.seek(pixels.start)
        order = ">" if pixels.syntax == BIG_ENDIAN else "<"
        _check_range(path, np.frombuffer(stream.read(size), f"{order}u{bits // 8}"), stored, signed)


def _check_native(path: Path, stream: BinaryIO, pixels: _Pixels, row: int, expected: int) -> None:
  if pixels.size < expected:
    raise _truncated(path, pixels.size, expected)
  # Padding with zeros is common; as much as a row may be pixels of a larger image.
  stream.seek(pixels.start + expected)
  rest = stream.read(min(row, pixels.size - expected))
  if len(rest) == row or any(rest):
    raise InputError(path, f"has {pixels.size} bytes of pixel data, but {expected} according to "
                     "its rows and columns", AGAIN, kind="size")


def _check_range(path: Path, pixels: np.ndarray, stored: int, signed: bool) -> None:
  """Checks that the bits above those stored are 0, or equal to the sign."""
  above = pixels >> stored
  valid = above == 0
  if signed:
    every = (1 << 8 * pixels.itemsize - stored) - 1
    valid |= (above == every) & (pixels >> (stored - 1) & 1 == 1)
  if not valid.all():
    raise InputError(path, f"has pixels of more bits than BitsStored, {stored}",
                     "export the original series again")


def _check_rle(path: Path, frame: bytes, pixels: int, count: int) -> None:
  """Checks a frame: one segment for each byte of a pixel."""
  try:
    segments, *offsets = struct.unpack(f"<{1 + RLE_SEGMENTS}I", frame[:RLE_HEADER])
  except struct.error:
    raise _truncated(path, 0, pixels * count) from None
  if segments != count:
    raise InputError(path, f"has {8 * segments} bits per pixel, but declares {8 * count}", AGAIN)
  ends = [*offsets[1:count], len(frame)]
  for start, end in zip(offsets[:count], ends, strict=True):
    size, rest = _unpacked_rle(frame[start:end], pixels)
    if size < pixels:
      raise _truncated(path, size, pixels)
    if size > pixels or any(rest):
      raise InputError(path, f"has more pixels than the {pixels} of its rows and columns", AGAIN,
                       kind="size")


def _unpacked_rle(segment: bytes, limit: int) -> tuple[int, bytes]:
  """Returns the size of a segment when unpacked, at least to `limit`, and what follows it."""
  position = size = 0
  while position < len(segment) and size < limit:
    code = segment[position]
    if code < 128:  # that many bytes, and one more, follow
      literal = segment[position + 1:position + 2 + code]
      size, position = size + len(literal), position + 2 + code
    else:  # one byte, repeated; nothing for 128
      repeated = code > 128 and position + 1 < len(segment)
      size, position = size + (257 - code) * repeated, position + 1 + (code > 128)
  return size, segment[position:]


def _truncated(path: Path, size: int, expected: int) -> InputError:
  return InputError(path, f"is truncated: {size} of {expected} bytes of pixel data", AGAIN,
                    kind="truncated")


def _find(stream: BinaryIO) -> _Pixels | None:
  """Finds the pixel data of the data set, not those of icons, which are in sequences."""
  head = stream.read(PREAMBLE + 4)
  if head[PREAMBLE:] != b"DICM":
    return None
  syntax = _transfer_syntax(stream)
  if syntax == DEFLATED:
    return None
  order = ">" if syntax == BIG_ENDIAN else "<"
  explicit = [syntax not in IMPLICIT]  # of the data set, and of each sequence that encloses it
  while True:
    element = _read_element(stream, order, explicit[-1])
    if element.tag == PIXEL_DATA and len(explicit) == 1:
      break
    if element.tag in (ITEM_END, SEQUENCE_END):
      explicit.pop()
    elif element.length == UNDEFINED:
      # PS3.5, 6.2.2: sequences of unknown representation are implicit.
      explicit.append(explicit[-1] and element.representation != b"UN")
    else:
      stream.seek(element.length, 1)
  if element.length == UNDEFINED:
    return _encapsulated(stream, syntax)
  return _Pixels(stream.tell(), element.length, 0, syntax)


def _transfer_syntax(stream: BinaryIO) -> str:
  """Returns the transfer syntax; the stream is then at the first element of the data set."""
  syntax = ""
  while True:
    position = stream.tell()
    element = _read_element(stream, "<", explicit=True)
    if element.tag[0] != TRANSFER_SYNTAX[0]:
      stream.seek(position)
      return syntax
    value = stream.read(element.length)
    if element.tag == TRANSFER_SYNTAX:
      syntax = value.decode("ascii").strip(" \0")


def _read_element(stream: BinaryIO, order: str, explicit: bool) -> _Element:
  """Reads the header of an element; its value follows."""
  head = stream.read(8)
  group, number = struct.unpack(f"{order}HH", head[:4])
  representation = head[4:6] if explicit and group != ITEM[0] else b""
  if not representation:
    length, = struct.unpack(f"{order}I", head[4:])
  elif representation in LONG:
    length, = struct.unpack(f"{order}I", stream.read(4))
  else:
    length, = struct.unpack(f"{order}H", head[6:])
  return _Element((group, number), representation, length)


def _encapsulated(stream: BinaryIO, syntax: str) -> _Pixels:
  """Counts frames; a frame may consist of several fragments, except in RLE."""
  offsets = _read_element(stream, "<", explicit=True)
  stream.seek(offsets.length, 1)
  first = size = frames = 0
  while (fragment := _read_element(stream, "<", explicit=True)).tag == ITEM:
    if not frames:
      first, size = stream.tell(), fragment.length
    start = stream.read(min(4, fragment.length))
    stream.seek(fragment.length - len(start), 1)
    frames += not frames or syntax == RLE or start.startswith(FRAME_STARTS)
  return _Pixels(first, size, max(frames, offsets.length // 4), syntax)
