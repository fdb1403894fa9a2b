"""Reads PNG, TIFF and JPEG images and label maps as 2-D `Volume`s, and writes PNG.

Pillow accepts data of another size than width and height require. This module refuses them in PNG
and in uncompressed TIFF; in JPEG and in compressed TIFF, surplus data are not noticed.
"""

from collections.abc import Iterator
import math
import os
from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import BLOCK
from condseg_jax.formats.voxels import check_file
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import unpacked_size
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, GREY_ALPHA, RGBA = 2, 4, 6  # colour types of the PNG header
CHANNELS = {RGB: 3, GREY_ALPHA: 2, RGBA: 4}
# First column and row, and steps, of the passes of an interlaced PNG (PNG standard, 8.2).
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))
# TIFF tags
BITS_PER_SAMPLE, COMPRESSION, SAMPLES, PLANAR = 258, 259, 277, 284
STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILE_BYTES = 279, 322, 323, 325
WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB"}


def read_picture(path: str | os.PathLike) -> Volume:
  """Reads an image or a label map.

  Args:
    path: a PNG, TIFF or JPEG file.

  Returns:
    A volume with a uint8 array (H, W), or (H, W, 3) for colour; grey images may also be uint16, and
    in TIFF int32 or float32. Palette images give the indices (label maps are stored this way),
    1-bit images 0 and 1; 2- and 4-bit grey is scaled to 255 as in the PNG standard; an alpha
    channel is dropped. The affine is the 3x3 identity, so the spacing is one pixel.

  Raises:
    InputError: missing, damaged or invalid file; several images in one file; 16-bit colour, CMYK
      and other ambiguous colour spaces; NaN or Inf.
  """
  path = Path(path)
  check_file(path)
  kind = FORMATS[path.suffix.lower()]
  try:
    if kind == "PNG":
      _check_png(path)
    elif not path.stat().st_size:
      raise InputError(path, "is empty (0 bytes)", AGAIN)
    with Image.open(path, formats=(kind,)) as picture:
      array = _pixels(path, picture)
  except InputError:
    raise
  except Image.UnidentifiedImageError as error:
    reason = "is damaged" if kind == "PNG" else f"is not a {kind} file, or is damaged"
    raise InputError(path, reason, "use the suffix of its format, or copy it again") from error
  except (SyntaxError, ValueError, zlib.error, struct.error, EOFError, KeyError) as error:
    raise InputError(path, f"is damaged ({error})", AGAIN) from error
  except Image.DecompressionBombError as error:
    raise InputError(path, f"is too large ({error})", "split it into tiles") from error
  except OSError as error:
    if error.errno is None:  # raised by Pillow: truncated, invalid chunk
      raise InputError(path, f"is damaged ({error})", AGAIN) from error
    raise InputError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
  check_finite(path, array)
  return Volume(array, np.eye(3))


def picture_shape(path: str | os.PathLike) -> tuple[int, int]:
  """Reads the shape (H, W) of an image from its header.

  Raises:
    InputError: as `read_picture`, except for damaged or invalid pixels.
  """
  path = Path(path)
  check_file(path)
  try:
    with Image.open(path, formats=(FORMATS[path.suffix.lower()],)) as picture:
      return picture.height, picture.width
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise InputError(path, f"cannot be read ({error})", AGAIN) from error


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes a PNG file atomically.

  Args:
    path: ends in .png; the folder exists; an existing file is replaced.
    array: (H, W) of bool or integers in [0, 65535] (stored with 8 bits if they fit and the dtype
      is not uint16), or (H, W, 3) of integers in [0, 255].

  Raises:
    InputError: another shape, type or range; a path that cannot be written.
  """
  path, array = Path(path), np.asarray(array)
  if path.suffix.lower() != ".png":
    raise InputError(path, "is not named .png", "name it .png")
  if array.ndim != 2 and array.shape[2:] != (3,) or array.size == 0:
    raise InputError(path, f"the array has the shape {array.shape}", "use (H, W) or (H, W, 3)")
  if array.dtype.kind not in "biu":
    raise InputError(path, f"pixels must be integers, not {array.dtype}",
                     "scale and round them to [0, 255]")
  low, high = int(array.min()), int(array.max())
  top = 255 if array.ndim == 3 else 65535
  if low < 0 or high > top:
    raise InputError(path, f"pixels from {low} to {high} must be in [0, {top}]", "scale them")
  wide = array.ndim == 2 and (array.dtype == np.uint16 or high > 255)
  picture = Image.fromarray(np.ascontiguousarray(array, np.uint16 if wide else np.uint8))
  with replacing(path) as temporary:
    picture.save(temporary, format="PNG")


def _pixels(path: Path, picture: Image.Image) -> np.ndarray:
  count = getattr(picture, "n_frames", 1)
  if count > 1:
    raise InputError(path, f"contains {count} frames", "split it and give one frame")
  bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
  if len(bits) > 1 and max(bits) > 8:
    raise InputError(path, "has 16 bits per colour channel", "convert it to 8 bits, or to grey")
  if isinstance(picture, TiffImageFile):
    _check_tiff_size(path, picture)
  if picture.format == "PNG":
    _check_png_size(path)
  if picture.mode in WITHOUT_ALPHA:
    picture = picture.convert(WITHOUT_ALPHA[picture.mode])
  if picture.mode not in ("1", "L", "P", "RGB", "F") and not picture.mode.startswith("I"):
    raise InputError(path, f"has the colour mode {picture.mode}", "convert it to RGB or grey")
  array = np.array(picture)
  if array.dtype == bool or picture.mode == "P":
    return array.astype(np.uint8)
  if picture.format == "PNG" and array.dtype.kind in "iu" and array.dtype.itemsize > 1:
    return array.astype(np.uint16)  # Pillow opens some 16-bit images with 32 bits
  return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_tiff_size(path: Path, picture: TiffImageFile) -> None:
  """Checks that uncompressed pixels take as many bytes as width and height require."""
  tags = picture.tag_v2
  stored = tags.get(TILE_BYTES, tags.get(STRIP_BYTES))
  if tags.get(COMPRESSION, 1) != 1 or stored is None:
    return
  samples = tags.get(SAMPLES, 1)
  bits = tags.get(BITS_PER_SAMPLE, (1,))
  bits = bits * samples if len(bits) == 1 else bits
  separate = tags.get(PLANAR, 1) == 2  # one plane per sample
  tile_width, tile_height = tags.get(TILE_WIDTH, picture.width), tags.get(TILE_HEIGHT, 1)
  width = math.ceil(picture.width / tile_width) * tile_width
  height = math.ceil(picture.height / tile_height) * tile_height
  row = sum(math.ceil(width * n / 8) for n in (bits if separate else (sum(bits),)))
  if sum(stored) != row * height:
    raise InputError(path, f"has {sum(stored)} bytes of pixels, but {row * height} according to "
                     "its width and height", "save it again with the program that wrote it",
                     kind="size")


def _check_png(path: Path) -> None:
  """Checks what Pillow does not check, or reports less clearly."""
  with path.open("rb") as file:
    head = file.read(26)
  if not head:
    raise InputError(path, "is empty (0 bytes)", AGAIN)
  if not head.startswith(SIGNATURE):
    raise InputError(path, "is not a PNG file", "convert it to PNG")
  if len(head) < 26:
    raise InputError(path, "is truncated", AGAIN, kind="truncated")
  depth, color = head[24], head[25]
  if depth == 16 and color in (RGB, RGBA, GREY_ALPHA):
    # Pillow would silently drop the lower eight bits.
    raise InputError(path, "has 16 bits per colour channel", "convert it to 8 bits, or to grey")


def _check_png_size(path: Path) -> None:
  """Checks that the compressed pixels have the size that width and height require."""
  with path.open("rb") as file:
    file.seek(16)
    width, height, depth, color, interlaced = struct.unpack(">2I2B2xB", file.read(13))
  expected, bits = 0, depth * CHANNELS.get(color, 1)
  for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
    columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
    if columns > 0:
      expected += max(rows, 0) * (1 + math.ceil(columns * bits / 8))  # one byte for the filter
  size = unpacked_size(_png_data(path), expected, zlib.MAX_WBITS)
  if size < expected:
    raise InputError(path, f"is truncated: {size} of {expected} bytes of pixels", AGAIN,
                     kind="truncated")
  if size > expected:
    raise InputError(path, f"contains more than the {expected} bytes of pixels that its width and "
                     "height require", AGAIN, kind="size")


def _png_data(path: Path) -> Iterator[bytes]:
  """Yields the compressed pixels; Pillow checks the checksums of the chunks."""
  with path.open("rb") as file:
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
      length, = struct.unpack(">I", head[:4])
      if head[4:] == b"IDAT":
        for start in range(0, length, BLOCK):
          yield file.read(min(BLOCK, length - start))
        file.seek(4, 1)
      else:
        file.seek(length + 4, 1)
