"""Reads and writes images and labels of all formats; the file name determines the format.

`READERS` is the table of formats.
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
from condseg_jax.formats import dicom_slices
from condseg_jax.formats import itk_header
from condseg_jax.formats import nifti
from condseg_jax.formats import picture
from condseg_jax.formats import sitk
from condseg_jax.formats.voxels import check_file
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
_SITK = _Reader(sitk.read_sitk, sitk.read_sitk_header, itk_header.member_paths)
_PICTURE = _Reader(picture.read_picture, _picture_header)
READERS = {".nii": _NIFTI, ".nii.gz": _NIFTI, **dict.fromkeys(sitk.SUFFIXES, _SITK),
           **dict.fromkeys(picture.FORMATS, _PICTURE)}


def read_volume(path: str | os.PathLike, series: str = "") -> Volume:
  """Reads an image in the axis order of its file.

  Args:
    path: NIfTI, MetaImage, NRRD, or the folder of a DICOM series (3-D); PNG, TIFF or JPEG (2-D).
    series: SeriesInstanceUID, if a DICOM folder contains several series.

  Raises:
    InputError: the file cannot be read, or has no orientation.
  """
  if Path(path).is_dir():
    return dicom.read_series(path, series)
  return _reader(path).volume(Path(path))


def read_label(path: str | os.PathLike) -> Volume:
  """Reads a label map of an unsigned integer dtype, in the axis order of its file.

  Raises:
    InputError: as `read_volume`; also fractional or negative values, a colour picture, a JPEG.
  """
  if _suffix(path) in (".jpg", ".jpeg"):
    raise InputError(path, "is a JPEG, which does not preserve label values", "store labels as PNG")
  return to_labels(path, read_volume(path))


def read_header(path: str | os.PathLike, series: str = "") -> Header:
  """Reads the geometry, and the memory required for reading, from headers; see `read_volume`."""
  if Path(path).is_dir():
    return dicom.read_series_header(path, series)
  return _reader(path).header(Path(path))


def modality(path: str | os.PathLike, series: str = "") -> str:
  """Returns the DICOM modality of an image (CT, MR, …); "" for other formats, or if missing."""
  return dicom.series_modality(path, series) if Path(path).is_dir() else ""


def members(path: str | os.PathLike, series: str = "") -> list[Path]:
  """Returns the files of which an image consists."""
  if Path(path).is_dir():
    return dicom.series_members(path, series)
  return _reader(path).members(Path(path))


def write_label(path: str | os.PathLike, label: np.ndarray, affine: np.ndarray,
                names: Mapping[str, int], colors: Mapping[str, Sequence[int]] | None = None
                ) -> None:
  """Writes a label map as NIfTI, NRRD or PNG, atomically.

  Args:
    path: the file; its name determines the format.
    label: integers, in the axis order of the file.
    affine: array index -> RAS+ world mm.
    names: class → value; stored in NIfTI files.
    colors: class → red, green, blue, 0–255; stored in NIfTI files.

  Raises:
    InputError: another format, invalid values, or a path that cannot be written.
  """
  suffix = _suffix(path)
  if suffix not in (".png", ".nii", ".nii.gz", ".nrrd"):
    raise InputError(path, "is not a supported format for labels",
                     "name it .nii.gz, or .png for a picture")
  if suffix == ".png":
    picture.write_png(path, label)
  elif suffix == ".nrrd":
    sitk.write_nrrd(path, Volume(label, affine))
  else:
    nifti.write_nifti(path, Volume(label, affine), label=True, names=names, colors=colors)


def stem(path: str | os.PathLike) -> str:
  """Returns the file name without the suffix of its format."""
  name = Path(path).name
  return name[:len(name) - len(_suffix(path))]


def is_image(path: str | os.PathLike) -> bool:
  """Returns whether a file name has the suffix of a supported format; False for hidden files."""
  return bool(_suffix(path)) and not Path(path).name.startswith(".")


def list_images(path: str | os.PathLike) -> list[Path]:
  """Lists the images at a path: a file, the files of a folder, or the folder of a DICOM series.

  A text file (.txt) contains one file or folder of a DICOM series per line, relative to its own
  folder.

  Raises:
    InputError: the path does not exist, the folder contains no image, or two images have the same
      name, so that their results would, too.
  """
  path = Path(path)
  if not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if path.suffix.lower() == ".txt":
    return _listed(path)
  if not path.is_dir():
    check_file(path)
    return [path]
  images = sorted(p for p in path.iterdir() if is_image(p) and p.is_file())
  if images:
    return _check_names(path, images)
  if dicom_slices.contains_dicom(path):
    return [path]
  raise InputError(path, "contains no image", f"expected the suffixes {', '.join(READERS)}, or "
                   "DICOM")


def _listed(path: Path) -> list[Path]:
  """Returns the images that are listed in a text file."""
  check_file(path)
  content = path.read_bytes()
  if b"\0" in content:
    raise InputError(path, "is not a text file", "write one image per line")
  lines = os.fsdecode(content).split("\n")  # names need not be UTF-8
  images = [path.parent / line.strip() for line in lines if line.strip()]
  for image in images:
    if not image.exists():
      raise InputError(image, f"is listed in {path.name}, but does not exist", "correct the list")
  if not images:
    raise InputError(path, "lists no image", "write one image per line")
  return _check_names(path, images)


def _check_names(path: Path, images: list[Path]) -> list[Path]:
  stems: dict[str, Path] = {}
  for image in images:
    if stem(image) in stems:
      raise InputError(path, f"results of {stems[stem(image)].name} and {image.name} would have "
                       "the same name", "rename one of them, or use two folders")
    stems[stem(image)] = image
  return images


def _suffix(path: str | os.PathLike) -> str:
  name = Path(path).name.lower()
  return max((s for s in READERS if name.endswith(s)), key=len, default="")


def _reader(path: str | os.PathLike) -> _Reader:
  path = Path(path)
  suffix = _suffix(path)
  if not suffix and not path.exists():
    raise InputError(path, "does not exist", "check the path")
  if not suffix:
    raise InputError(path, "is not a supported format",
                     f"convert it to one of {', '.join(READERS)}; for DICOM give the folder")
  return READERS[suffix]
