"""Reads a folder of DICOM slices as one `Volume`, with SimpleITK (GDCM).

Slices are grouped by SeriesInstanceUID and sorted by their position along the normal of the image
plane, never by name or instance number. Input that would give a wrong volume is refused: several
series or patients, two slices at one position, a missing slice, slices of different size or
orientation, a gantry tilt, several frames in one file, pixel data of another size than declared.

Standard: DICOM PS3.3, C.7.6.2 (Image Plane).
"""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.dicom_pixels import check_pixels
from condseg_jax.formats.dicom_slices import BITS_ALLOCATED
from condseg_jax.formats.dicom_slices import BITS_STORED
from condseg_jax.formats.dicom_slices import check_slice
from condseg_jax.formats.dicom_slices import EXPORT
from condseg_jax.formats.dicom_slices import MODALITY
from condseg_jax.formats.dicom_slices import ORIENTATION
from condseg_jax.formats.dicom_slices import OVERLAY_ROWS
from condseg_jax.formats.dicom_slices import PATIENT_ID
from condseg_jax.formats.dicom_slices import PIXEL_SPACING
from condseg_jax.formats.dicom_slices import POSITION
from condseg_jax.formats.dicom_slices import reader_of
from condseg_jax.formats.dicom_slices import scanned
from condseg_jax.formats.dicom_slices import SERIES_NUMBER
from condseg_jax.formats.dicom_slices import SIGNED
from condseg_jax.formats.dicom_slices import Slice
from condseg_jax.formats.dicom_slices import SLICE_SPACING
from condseg_jax.formats.dicom_slices import SLICE_THICKNESS
from condseg_jax.formats.sitk import check_directions
from condseg_jax.formats.sitk import last_line
from condseg_jax.formats.sitk import LPS_TO_RAS
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import Header
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

MAX_GAP_ERROR = 0.05  # relative to the slice distance; a missing slice is an error of 1
MAX_TILT_DEGREES = 0.5
MIN_AREA = 0.1  # area spanned by the unit vectors of rows and columns: 1 if perpendicular


class Series(NamedTuple):
  """A series of a folder.

  Attributes:
    uid: SeriesInstanceUID; "" if the slices have none.
    number: SeriesNumber; "" if the slices have none.
    description: SeriesDescription; "" if the slices have none.
  """

  uid: str
  number: str
  description: str


def list_series(folder: str | os.PathLike) -> list[Series]:
  """Lists the series of a folder and its sub-folders, in the order of their files.

  Raises:
    InputError: the folder does not exist, or a slice is damaged.
  """
  first_slices: dict[str, Slice] = {}
  for one in scanned(Path(folder)):
    first_slices.setdefault(one.series, one)
  return [Series(uid, one.tags.get(SERIES_NUMBER, "").strip(" \0"), one.name)
          for uid, one in first_slices.items()]


def read_series(folder: str | os.PathLike, series: str = "") -> Volume:
  """Reads a series.

  Args:
    folder: contains the slices of one or more series, possibly in subfolders.
    series: SeriesInstanceUID, if there are several series.

  Returns:
    A volume with the axes (x, y, z): columns, rows, slices; affine in RAS+ mm. Rescale slope and
    intercept are applied slice by slice.

  Raises:
    InputError: see the module's docstring; also damaged slices and missing positions.
  """
  folder = Path(folder)
  slices, geometry = _ordered(folder, series)
  array = np.empty(geometry.shape, np.result_type(*(s.dtype for s in slices)), order="F")
  for index, item in enumerate(slices):
    bits = item.numbers(BITS_ALLOCATED)
    if bits:
      stored = item.numbers(BITS_STORED)
      # Formerly, overlays were in the bits above those of the pixels.
      check_pixels(item.path, *item.size[:2], int(bits[0]),
                   stored=int(stored[0]) if stored and OVERLAY_ROWS not in item.tags else 0,
                   signed=item.numbers(SIGNED) == (1,))
    try:
      image = reader_of(item.path).Execute()  # keeps the memory of the view below alive
      array[..., index] = sitk.GetArrayViewFromImage(image)[0].T
    except RuntimeError as error:
      raise InputError(item.path, f"cannot be read ({last_line(error)})", AGAIN,
                       kind="truncated") from error
  check_finite(folder, array)
  return Volume(array, geometry.affine)


def read_series_header(folder: str | os.PathLike, series: str = "") -> Header:
  """Reads shape and affine of a series from the headers of its slices, without voxels.

  Raises:
    InputError: as `read_series`, except for damaged voxels.
  """
  slices, geometry = _ordered(Path(folder), series)
  itemsize = np.result_type(*(s.dtype for s in slices)).itemsize
  return Header(geometry, int(np.prod(geometry.shape)) * itemsize)


def series_members(folder: str | os.PathLike, series: str = "") -> list[Path]:
  """Returns the files of a series in slice order, i.e. along the last axis of its `Volume`."""
  return [item.path for item in _ordered(Path(folder), series)[0]]


def series_modality(folder: str | os.PathLike, series: str = "") -> str:
  """Returns the modality of a series from its header: CT, MR, PT, …; "" if it is missing."""
  return _ordered(Path(folder), series)[0][0].tags.get(MODALITY, "").strip(" \0").upper()


def _ordered(folder: Path, series: str) -> tuple[list[Slice], Geometry]:
  """Returns the slices of a series in order, and the grid of its `Volume`."""
  slices = _selected(folder, scanned(folder), series)
  first = slices[0]
  for item in slices:
    check_slice(item)
    if item.size != first.size:
      raise InputError(item.path, f"has the size {item.size[:2]}, but other slices have "
                       f"{first.size[:2]}", "remove it from the series")
    if not _close(item.numbers(ORIENTATION), first.numbers(ORIENTATION)) or not _close(
        item.numbers(PIXEL_SPACING), first.numbers(PIXEL_SPACING)):
      raise InputError(item.path, "has another orientation or pixel spacing than the other slices",
                       "remove it from the series; it may be a localiser")
  if len({item.tags.get(PATIENT_ID, "").strip(" \0") for item in slices} - {""}) > 1:
    raise InputError(folder, "contains slices of several patients in one series (PatientID)",
                     "keep the slices of one patient")
  across, down = np.reshape(first.numbers(ORIENTATION), (2, 3))
  check_directions((across, down), first.path)
  if min(first.numbers(PIXEL_SPACING)) <= 0:
    raise InputError(first.path, f"has the PixelSpacing {first.numbers(PIXEL_SPACING)} mm",
                     EXPORT, kind="affine")
  normal = np.cross(across, down)
  if np.linalg.norm(normal) < MIN_AREA:
    raise InputError(first.path, "has parallel rows and columns", EXPORT, kind="affine")
  normal /= np.linalg.norm(normal)
  order = sorted(slices, key=lambda s: float(normal @ s.numbers(POSITION)))
  positions = np.array([s.numbers(POSITION) for s in order])
  step = _step(folder, order, positions, normal)
  rows, columns = first.numbers(PIXEL_SPACING)
  affine = np.eye(4)
  affine[:3] = np.stack([across * columns, down * rows, step, positions[0]], axis=1)
  affine = LPS_TO_RAS @ affine
  check_affine(affine, folder)
  return order, Geometry((*first.size[:2], len(order)), affine)


def _step(folder: Path, order: list[Slice], positions: np.ndarray,
          normal: np.ndarray) -> np.ndarray:
  """Returns the vector from one slice to the next in mm; raises InputError if it varies."""
  if len(order) == 1:
    gap = order[0].numbers(SLICE_SPACING) or order[0].numbers(SLICE_THICKNESS)
    if not gap:
      raise InputError(folder, "contains a single slice without a slice thickness",
                       "check that no slices are missing", kind="affine")
    return normal * gap[0]
  gaps = np.diff(positions @ normal)
  median = float(np.median(gaps))
  if gaps.min() <= MAX_GAP_ERROR * median or median <= 0:
    index = int(np.argmin(gaps))
    raise InputError(folder, f"two slices have the same position: {order[index].path.name} and "
                     f"{order[index + 1].path.name}",
                     "keep one time point or phase, or remove duplicates")
  worst = int(np.argmax(np.abs(gaps - median)))
  if abs(gaps[worst] - median) > MAX_GAP_ERROR * median:
    raise InputError(folder, f"slices are {median:.4g} mm apart, but {gaps[worst]:.4g} mm after "
                     f"{order[worst].path.name}: a slice is missing, or the distance varies",
                     "complete the series, or resample it, e.g. with dcm2niix")
  step = (positions[-1] - positions[0]) / (len(order) - 1)
  drift = np.linalg.norm(step - normal * (step @ normal))
  tilt = float(np.degrees(np.arctan2(drift, step @ normal)))
  if tilt > MAX_TILT_DEGREES:
    raise InputError(folder, f"has a gantry tilt of {tilt:.1f} degrees",
                     "correct the tilt first, e.g. with dcm2niix")
  return step


def _selected(folder: Path, slices: list[Slice], series: str) -> list[Slice]:
  """Returns the slices of the given series, or of the only one."""
  groups: dict[str, list[Slice]] = {}
  for item in slices:
    groups.setdefault(item.series, []).append(item)
  if not groups:
    raise InputError(folder, "contains no DICOM image", "give the folder of the slices")
  listing = "; ".join(f"{key or 'without id'} ({group[0].name or 'unnamed'}, {len(group)} slices)"
                      for key, group in groups.items())
  if series:
    if series not in groups:
      raise InputError(folder, f"contains no series {series}", f"choose from: {listing}")
    return groups[series]
  if len(groups) > 1:
    raise InputError(folder, f"contains {len(groups)} series", "give the `series` to read, or keep "
                     f"one of them: {listing}")
  return next(iter(groups.values()))


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
  return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-4, atol=1e-4))
