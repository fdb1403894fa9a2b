"""A file or a DICOM folder in, a volume out, whatever its format; the format follows from the name.

The table `READERS` is the one list of formats.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats import nifti
from condseg_jax.formats import picture
from condseg_jax.formats import sitk
from condseg_jax.formats.voxels import Header
from condseg_jax.formats.voxels import to_labels
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume


class _Reader(NamedTuple):
  volume: Callable[[Path], Volume]
  header: Callable[[Path], Header]
  members: Callable[[Path], list[Path]] = lambda path: [path]


def _picture_header(path: Path) -> Header:
  shape = picture.picture_shape(path)
  return Header(Geometry(shape, np.eye(3)), 4 * shape[0] * shape[1])


_NIFTI = _Reader(nifti.read_nifti, nifti.read_nifti_header)
_SITK = _Reader(sitk.read_sitk, sitk.read_sitk_header, sitk.sitk_members)
_PICTURE = _Reader(picture.read_picture, _picture_header)
READERS = {".nii": _NIFTI, ".nii.gz": _NIFTI, **dict.fromkeys(sitk.SUFFIXES, _SITK),
           **dict.fromkeys(picture.FORMATS, _PICTURE)}


def read_volume(path: str | os.PathLike, series: str = "") -> Volume:
  """An image in the axis order of its file.

  Args:
    path: NIfTI, MetaImage, NRRD, or the folder of a DICOM series, all 3-D; PNG, TIFF or JPEG, 2-D.
    series: SeriesInstanceUID, where a DICOM folder holds several.

  Raises:
    InputError: the file cannot be read, or does not say where its voxels lie.
  """
  if Path(path).is_dir():
    return dicom.read_series(path, series)
  return _reader(path).volume(Path(path))


def read_label(path: str | os.PathLike) -> Volume:
  """A label map of an unsigned integer dtype, in the axis order of its file.

  Raises:
    InputError: as `read_volume`; also fractional or negative values, a colour picture, or one
      whose compression invents values.
  """
  if _suffix(path) in (".jpg", ".jpeg"):
    raise InputError(path, "is a JPEG, which does not keep label values", "store labels as PNG")
  return to_labels(path, read_volume(path))


def read_header(path: str | os.PathLike, series: str = "") -> Header:
  """Geometry, and the memory that reading takes, from headers alone; see `read_volume`."""
  if Path(path).is_dir():
    return dicom.read_series_header(path, series)
  return _reader(path).header(Path(path))


def modality(path: str | os.PathLike, series: str = "") -> str:
  """What made an image as DICOM calls it (CT, MR, …); "" where the file does not say."""
  return dicom.series_modality(path, series) if Path(path).is_dir() else ""


def members(path: str | os.PathLike, series: str = "") -> list[Path]:
  """The files that an image consists of."""
  if Path(path).is_dir():
    return dicom.series_members(path, series)
  return _reader(path).members(Path(path))


def write_label(path: str | os.PathLike, label: np.ndarray, affine: np.ndarray,
                names: Mapping[str, int], colors: Mapping[str, Sequence[int]] | None = None
                ) -> None:
  """Writes a label map, NIfTI or PNG; the file appears whole or not at all.

  Args:
    path: its name decides the format.
    label: integers, in the axis order of the file.
    affine: of the file.
    names: class → value, kept in the file where the format has a place for it.
    colors: class → red, green, blue, 0–255, kept likewise.
  """
  suffix = _suffix(path)
  if suffix not in (".png", ".nii", ".nii.gz"):
    raise InputError(path, "is not a format that labels are written in",
                     "name it .nii.gz, or .png for a picture")
  if suffix == ".png":
    picture.write_png(path, label)
  else:
    nifti.write_nifti(path, Volume(label, affine), label=True, names=names, colors=colors)


def stem(path: str | os.PathLike) -> str:
  """The file's name without its format."""
  name = Path(path).name
  return name[:len(name) - len(_suffix(path))]


def is_image(path: str | os.PathLike) -> bool:
  """Whether a name is that of a format read here; hidden files are none."""
  return bool(_suffix(path)) and not Path(path).name.startswith(".")


def list_images(path: str | os.PathLike) -> list[Path]:
  """The images that a path names: itself, those of the folder, or the folder as a DICOM series.

  A text file (.txt) names one file or folder of a DICOM series a line, relative to where it lies.

  Raises:
    InputError: nothing there, no image in the folder, or two of one name, whose results would be
      files of one name, too.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.suffix.lower() == ".txt":
    return _listed(path)
  if not path.is_dir():
    return [path]
  found = sorted(p for p in path.iterdir() if is_image(p) and p.is_file())
  if found:
    return _of_different_names(path, found)
  if dicom.holds_dicom(path):
    return [path]
  raise InputError(path, "holds no image", f"expected files named {', '.join(READERS)}, or DICOM")


def _listed(path: Path) -> list[Path]:
  """The images that a text file names."""
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except ValueError as error:
    raise InputError(path, "is no text", "name one image a line") from error
  found = [path.parent / line.strip() for line in lines if line.strip()]
  for image in found:
    if not image.exists():
      raise InputError(image, f"does not exist, but {path.name} names it", "correct the list")
  if not found:
    raise InputError(path, "names no image", "name one image a line")
  return _of_different_names(path, found)


def _of_different_names(where: Path, images: list[Path]) -> list[Path]:
  stems: dict[str, Path] = {}
  for image in images:
    if stem(image) in stems:
      raise InputError(where, f"{stems[stem(image)].name} and {image.name} would have results of "
                       "one name", "rename one of them, or use two folders")
    stems[stem(image)] = image
  return images


def _suffix(path) -> str:
  name = Path(path).name.lower()
  return max((s for s in READERS if name.endswith(s)), key=len, default="")


def _reader(path) -> _Reader:
  path = Path(path)
  suffix = _suffix(path)
  if not suffix and not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if not suffix:
    raise InputError(path, "is not a format this program reads",
                     f"convert it to one of {', '.join(READERS)}; name DICOM by its folder")
  return READERS[suffix]
