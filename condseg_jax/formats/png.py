"""PNG pictures and label pictures to and from 2-D `Volume`s."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from condseg_jax.atomic import replacing
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, GREY_ALPHA, RGBA = 2, 4, 6  # colour types of the PNG header
AGAIN = "copy or download it again"


def read_png(path: str | os.PathLike) -> Volume:
  """Reads a picture or a label picture.

  Args:
    path: a PNG file.

  Returns:
    Volume whose array is (H, W), or (H, W, 3) for colour, of uint8, or uint16 for 16-bit grey.
    Palette pictures give the indices (label pictures are stored so), 1-bit pictures 0 and 1;
    2- and 4-bit grey is scaled to 255 as the standard says; an alpha channel is dropped. A PNG
    has no place in the world: the affine is the 3x3 identity, spacing 1 means one pixel.

  Raises:
    InputError: missing, damaged or foreign file; animation; 16-bit colour.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.is_dir():
    raise InputError(path, "is a folder", "name the PNG file in it")
  try:
    with path.open("rb") as file:
      head = file.read(26)
    if not head:
      raise InputError(path, "is empty (0 bytes)", AGAIN)
    if not head.startswith(SIGNATURE):
      raise InputError(path, "is not a PNG file", "convert it to PNG")
    if len(head) < 26:
      raise InputError(path, "is truncated", AGAIN)
    depth, color = head[24], head[25]
    if depth == 16 and color in (RGB, RGBA, GREY_ALPHA):
      # Pillow would quietly keep the upper eight bits.
      raise InputError(path, "16 bits per colour channel", "convert it to 8 bits, or to grey")
    with Image.open(path, formats=("PNG",)) as picture:
      if getattr(picture, "n_frames", 1) > 1:
        reason = f"animation of {picture.n_frames} frames"
        raise InputError(path, reason, "split it and name one frame")
      if color in (GREY_ALPHA, RGBA):
        picture = picture.convert("L" if color == GREY_ALPHA else "RGB")
      array = np.array(picture)
  except InputError:
    raise
  except (SyntaxError, ValueError, zlib.error, struct.error, EOFError) as error:
    raise InputError(path, f"is damaged ({error})", AGAIN) from error
  except Image.DecompressionBombError as error:
    raise InputError(path, f"is too large ({error})", "cut it into tiles") from error
  except OSError as error:
    if error.errno is None:  # Pillow's own: truncated, broken chunk, unidentified
      raise InputError(path, f"is damaged ({error})", AGAIN) from error
    raise InputError(path, f"cannot be read: {error.strerror}", "check its permissions") from error
  return Volume(array.astype(np.uint16 if depth == 16 else np.uint8, copy=False), np.eye(3))


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
