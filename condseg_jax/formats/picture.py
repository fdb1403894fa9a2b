"""Reads PNG, TIFF and JPEG images and label maps as 2-D `Volume`s, and writes PNG."""

import os
from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import check_finite
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, GREY_ALPHA, RGBA = 2, 4, 6  # colour types of the PNG header
BITS_PER_SAMPLE = 258  # TIFF tag
WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB"}
AGAIN = "copy or download it again"


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
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", "give the image file in it")
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
  try:
    with Image.open(path, formats=(FORMATS[Path(path).suffix.lower()],)) as picture:
      return picture.height, picture.width
  except FileNotFoundError as error:
    raise InputError(path, "does not exist", "check the path") from error
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
