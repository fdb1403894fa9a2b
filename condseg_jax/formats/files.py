"""A file in, a volume out, whatever its format; the format follows from the name."""

from collections.abc import Mapping
import os
from pathlib import Path

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats import nifti
from condseg_jax.formats import png
from condseg_jax.geometry import Volume

SUFFIXES = (".nii", ".nii.gz", ".png")


def read_image(path: str | os.PathLike) -> Volume:
  """An image in the axis order of its file: 3-D from NIfTI, 2-D from PNG.

  Raises:
    InputError: the file cannot be read, or its geometry is not usable.
  """
  return png.read_png(path) if _is_png(path) else nifti.read_nifti(path)


def read_label(path: str | os.PathLike) -> Volume:
  """A label map of an integer dtype, in the axis order of its file.

  Raises:
    InputError: as `read_image`; also fractional or negative values, or a colour picture.
  """
  if not _is_png(path):
    return nifti.read_label(path)
  label = png.read_png(path)
  if label.array.ndim > label.ndim:
    raise InputError(path, "is a colour picture where labels are expected",
                     "store the class numbers, as grey values or palette indices")
  return label


def write_label(path: str | os.PathLike, label: np.ndarray, affine: np.ndarray,
                names: Mapping[str, int]) -> None:
  """Writes a label map; the file appears whole or not at all.

  Args:
    path: its name decides the format.
    label: integers, in the axis order of the file.
    affine: of the file.
    names: class → value, kept in the file where the format has a place for it.
  """
  if _is_png(path):
    png.write_png(path, label)
  else:
    nifti.write_nifti(path, Volume(label, affine), label=True, names=names)


def stem(path: str | os.PathLike) -> str:
  """The file's name without its format."""
  name = Path(path).name
  for suffix in sorted(SUFFIXES, key=len, reverse=True):
    if name.lower().endswith(suffix):
      return name[:-len(suffix)]
  return name


def list_images(path: str | os.PathLike) -> list[Path]:
  """The image files that a path names: itself, or those of the folder, in order.

  Raises:
    InputError: nothing there, or no image in the folder.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if not path.is_dir():
    return [path]
  found = sorted(p for p in path.iterdir()
                 if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))
  if not found:
    raise InputError(path, "holds no image", f"expected files named {', '.join(SUFFIXES)}")
  return found


def _is_png(path) -> bool:
  path = Path(path)
  name = path.name.lower()
  if not name.endswith(SUFFIXES):
    raise InputError(path, "is not a format this program reads",
                     f"convert it to one of {', '.join(SUFFIXES)}")
  return name.endswith(".png")
