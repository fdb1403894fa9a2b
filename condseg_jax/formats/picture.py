"""PNG, TIFF and JPEG pictures and label pictures to and from 2-D `Volume`s."""

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
BITS_PER_SAMPLE = 258  # tag of TIFF
WITHOUT_ALPHA = {"LA": "L", "RGBA": "RGB"}
AGAIN = "copy or download it again"


def read_picture(path: str | os.PathLike) -> Volume:
  """Reads a picture or a label picture.

  Args:
    path: a PNG, TIFF or JPEG file.

  Returns:
    Volume whose array is (H, W), or (H, W, 3) for colour, of uint8; grey pictures may also be
    uint16, and in TIFF int32 or float32. Palette pictures give the indices (label pictures are
    stored so), 1-bit pictures 0 and 1; 2- and 4-bit grey is scaled to 255 as the PNG standard says;
    an alpha channel is dropped. A picture has no place in the world: the affine is the 3x3
    identity, spacing 1 means one pixel.

  Raises:
    InputError: missing, damaged or foreign file; several pictures in one file; 16-bit colour,
      CMYK and other colours that would have to be guessed; NaN or Inf.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", "name the picture in it")
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
    told = "is damaged" if kind == "PNG" else f"is not a {kind} file, or is damaged"
    raise InputError(path, told, "name it by its format, or copy it again") from error
  except (SyntaxError, ValueError, zlib.error, struct.error, EOFError, KeyError) as error:
    raise InputError(path, f"is damaged ({error})", AGAIN) from error
  except Image.DecompressionBombError as error:
    raise InputError(path, f"is too large ({error})", "cut it into tiles") from error
  except OSError as error:
    if error.errno is None:  # Pillow's own: truncated, broken chunk
      raise InputError(path, f"is damaged ({error})", AGAIN) from error
    raise InputError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
  check_finite(path, array)
  return Volume(array, np.eye(3))


def picture_shape(path: str | os.PathLike) -> tuple[int, int]:
  """(H, W) of a picture from its header.

  Raises:
    InputError: as `read_picture`, as far as the header tells.
  """
  try:
    with Image.open(path, formats=(FORMATS[Path(path).suffix.lower()],)) as picture:
      return picture.height, picture.width
  except FileNotFoundError as error:
    raise InputError(path, "does not exist", "check the path") from error
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise InputError(path, f"cannot be read ({error})", AGAIN) from error


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes a picture; the file appears whole or not at all.

  Args:
    path: ends in .png; the folder exists; an old file is replaced.
    array: (H, W) of bool or integers 0 to 65535 (8 bits where they fit and the dtype is not
      uint16), or (H, W, 3) of integers 0 to 255.

  Raises:
    InputError: another shape, type or range; a path that cannot be written.
  """
  path, array = Path(path), np.asarray(array)
  if path.suffix.lower() != ".png":
    raise InputError(path, "is not named .png", "name it .png")
  if array.ndim != 2 and array.shape[2:] != (3,) or array.size == 0:
    raise InputError(path, f"array of shape {array.shape}", "pass (H, W) or (H, W, 3)")
  if array.dtype.kind not in "biu":
    raise InputError(path, f"array of type {array.dtype}", "scale and round it to 0 to 255")
  low, high = int(array.min()), int(array.max())
  top = 255 if array.ndim == 3 else 65535
  if low < 0 or high > top:
    raise InputError(path, f"values from {low} to {high}", f"scale them to 0 to {top}")
  wide = array.ndim == 2 and (array.dtype == np.uint16 or high > 255)
  picture = Image.fromarray(np.ascontiguousarray(array, np.uint16 if wide else np.uint8))
  with replacing(path) as temporary:
    picture.save(temporary, format="PNG")


def _pixels(path: Path, picture: Image.Image) -> np.ndarray:
  count = getattr(picture, "n_frames", 1)
  if count > 1:
    told = "animation" if picture.format == "PNG" else "file"
    raise InputError(path, f"{told} of {count} frames", "split it and name one frame")
  bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))
  if len(bits) > 1 and max(bits) > 8:
    raise InputError(path, "16 bits per colour channel", "convert it to 8 bits, or to grey")
  if picture.mode in WITHOUT_ALPHA:
    picture = picture.convert(WITHOUT_ALPHA[picture.mode])
  if picture.mode not in ("1", "L", "P", "RGB", "F") and not picture.mode.startswith("I"):
    raise InputError(path, f"colours of type {picture.mode}", "convert it to RGB or grey")
  array = np.array(picture)
  if array.dtype == bool or picture.mode == "P":
    return array.astype(np.uint8)
  if picture.format == "PNG" and array.dtype.kind in "iu" and array.dtype.itemsize > 1:
    return array.astype(np.uint16)  # Pillow holds some 16-bit pictures in 32 bits
  return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_png(path: Path) -> None:
  """What Pillow would let pass, or tell less clearly."""
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
    # Pillow would quietly keep the upper eight bits.
    raise InputError(path, "16 bits per colour channel", "convert it to 8 bits, or to grey")
