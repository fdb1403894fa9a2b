"""Reads a folder of DICOM slices as one `Volume`, with SimpleITK (GDCM).

Slices are grouped by SeriesInstanceUID and sorted by their position along the normal of the image
plane, never by name or instance number. Input that would give a wrong volume is refused: several
series or patients, two slices at one position, a missing slice, slices of different size or
orientation, a gantry tilt, several frames in one file, pixel data of another size than declared.

The first or last slice can be missing without a gap. A file that cannot be read, but looks like a
slice by its name, its first bytes or its lack of any, is therefore refused; other files, such as
notes, are skipped.

Standard: DICOM PS3.3, C.7.6.2 (Image Plane).
"""

from collections.abc import Iterator
from collections.abc import Sequence
import functools
import math
import os
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.dicom_pixels import check_pixels
from condseg_jax.formats.sitk import check_directions
from condseg_jax.formats.sitk import DTYPES
from condseg_jax.formats.sitk import is_utf8
from condseg_jax.formats.sitk import last_line
from condseg_jax.formats.sitk import linked
from condseg_jax.formats.sitk import LPS_TO_RAS
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import check_file
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import Header
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

SERIES_ID, SERIES_NAME, MODALITY = "0020|000e", "0008|103e", "0008|0060"
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
SLICE_SPACING, SLICE_THICKNESS = "0018|0088", "0018|0050"
SERIES_NUMBER, PATIENT_ID = "0020|0011", "0010|0020"
BITS_ALLOCATED, BITS_STORED, HIGH_BIT = "0028|0100", "0028|0101", "0028|0102"
PHOTOMETRIC, SIGNED, OVERLAY_ROWS = "0028|0004", "0028|0103", "6000|0010"
INTERCEPT, SLOPE = "0028|1052", "0028|1053"
READ = (POSITION, ORIENTATION, PIXEL_SPACING, SLICE_SPACING, SLICE_THICKNESS, MODALITY,
        SERIES_NUMBER, PATIENT_ID, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, PHOTOMETRIC, SIGNED,
        OVERLAY_ROWS, INTERCEPT, SLOPE)
SUFFIXES = (".dcm", ".dicom", ".ima")
# SOP classes of objects other than images: directories (DICOMDIR), presentation states, reports,
# segmentations, plans.
NO_IMAGE = ("1.2.840.10008.1.3.10", *(f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in
                                      ("11.", "88.", "66", "481.", "104.")))
MAX_GAP_ERROR = 0.05  # relative to the slice distance; a missing slice is an error of 1
MAX_TILT_DEGREES = 0.5
MIN_AREA = 0.1  # area spanned by the unit vectors of rows and columns: 1 if perpendicular
EXPORT = "export the original series again"


class _Slice(NamedTuple):
  path: Path
  series: str
  name: str
  size: tuple[int, ...]
  dtype: np.dtype
  components: int
  tags: dict[str, str]

  def numbers(self, tag: str) -> tuple[float, ...]:
    """Returns the finite numbers of a tag; () for any other value."""
    try:
      values = tuple(float(x) for x in self.tags.get(tag, "").split("\\"))
    except ValueError:
      return ()
    return values if all(map(math.isfinite, values)) else ()


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
  first_slices: dict[str, _Slice] = {}
  for one in _scanned(Path(folder)):
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
      image = _reader(item.path).Execute()  # keeps the memory of the view below alive
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


def contains_dicom(folder: str | os.PathLike) -> bool:
  """Returns whether a folder or one of its subfolders contains a DICOM file."""
  return any(path.is_file() and _preamble(path) for path in _files(Path(folder)))


def clear_header_cache() -> None:
  """Clears the cache of headers; a long-running process calls it after each series."""
  _scanned_files.cache_clear()


def _ordered(folder: Path, series: str) -> tuple[list[_Slice], Geometry]:
  """Returns the slices of a series in order, and the grid of its `Volume`."""
  slices = _selected(folder, _scanned(folder), series)
  first = slices[0]
  for item in slices:
    _check_slice(item)
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


def _step(folder: Path, order: list[_Slice], positions: np.ndarray,
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


def _selected(folder: Path, slices: list[_Slice], series: str) -> list[_Slice]:
  """Returns the slices of the given series, or of the only one."""
  groups: dict[str, list[_Slice]] = {}
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


def _scanned(folder: Path) -> list[_Slice]:
  """Reads the headers of the images under a folder; cached while the files are unchanged."""
  if not folder.is_dir():
    raise InputError(folder, "does not exist" if not folder.exists() else "is not a folder",
                     "give the folder of a DICOM series")
  stamps = []
  for path in _files(folder):
    check_file(path)
    stat = path.stat()
    stamps.append((path, stat.st_mtime_ns, stat.st_size))
  return _scanned_files(tuple(stamps))


@functools.lru_cache(maxsize=4096)
def _scanned_files(stamps: tuple[tuple[Path, int, int], ...]) -> list[_Slice]:
  slices, unread = [], []
  for path, _, size in stamps:
    reader = _reader(path)
    try:
      reader.ReadImageInformation()
    except RuntimeError as error:
      head = _preamble(path)
      if head and not _class_of(head).startswith(NO_IMAGE):
        raise InputError(path, f"is damaged, or of an unknown compression ({last_line(error)})",
                         AGAIN, kind="truncated") from error
      if not head:
        unread.append((path, size))
      continue  # not DICOM, or not an image
    tags = {tag: reader.GetMetaData(tag).strip() for tag in READ if reader.HasMetaDataKey(tag)}
    dtype = np.dtype(DTYPES.get(reader.GetPixelIDValue(), np.float32))
    slices.append(_Slice(path, _text(reader, SERIES_ID), _text(reader, SERIES_NAME),
                         tuple(reader.GetSize()), dtype if dtype != np.float64 else
                         np.dtype(np.float32), reader.GetNumberOfComponents(), tags))
  patterns = {_pattern(one.path) for one in slices} - {""}
  for path, size in unread:
    if (path.suffix.lower() in SUFFIXES or _pattern(path) in patterns
        or size <= 1 and not re.fullmatch(r"\.[A-Za-z]+", path.suffix)
        or b"DICM" in _head(path)):
      raise InputError(path, "cannot be read, but seems to be a slice", f"{AGAIN}, or remove it "
                       "from the folder", kind="truncated")
  return slices


def _pattern(path: Path) -> str:
  """Returns a file name with its numbers as `#`; "" without any."""
  pattern = re.sub(r"\d+", "#", path.name)
  return pattern if "#" in pattern else ""


def _check_slice(item: _Slice) -> None:
  if item.components > 1:
    raise InputError(item.path, "is a colour picture", "use a series of grey values")
  if len(item.size) > 2 and item.size[2] > 1:
    raise InputError(item.path, f"contains {item.size[2]} frames in one file",
                     "split it into single slices, or convert it, e.g. with dcm2niix")
  _check_values(item)
  for tag, count, name in ((POSITION, 3, "ImagePositionPatient"),
                           (ORIENTATION, 6, "ImageOrientationPatient"),
                           (PIXEL_SPACING, 2, "PixelSpacing")):
    if len(item.numbers(tag)) != count:
      raise InputError(item.path, f"has no {name}, so its position is unknown", EXPORT,
                       kind="affine")


def _check_values(item: _Slice) -> None:
  """Checks what the values of pixels depend on.

  GDCM takes a slope of 0 for 1 and missing signs for unsigned, and inverts MONOCHROME1.
  """
  if item.numbers(SIGNED) not in ((0,), (1,)):
    raise InputError(item.path, "has no valid PixelRepresentation", EXPORT)
  if item.tags.get(PHOTOMETRIC, "MONOCHROME2").strip(" \0") != "MONOCHROME2":
    raise InputError(item.path, f"has the PhotometricInterpretation {item.tags[PHOTOMETRIC]!r}",
                     "export it as MONOCHROME2")
  for tag, name in ((SLOPE, "RescaleSlope"), (INTERCEPT, "RescaleIntercept")):
    if tag in item.tags and (len(item.numbers(tag)) != 1 or item.numbers(SLOPE) == (0,)):
      raise InputError(item.path, f"has the {name} {item.tags[tag]!r}", EXPORT)
  allocated, stored, high = (item.numbers(tag) for tag in (BITS_ALLOCATED, BITS_STORED, HIGH_BIT))
  if stored and (high and high[0] != stored[0] - 1 or stored[0] < 1
                 or allocated and stored[0] > allocated[0]):
    raise InputError(item.path, f"has contradictory BitsAllocated, BitsStored and HighBit: "
                     f"{' '.join(f'{n:g}' for n in allocated + stored + high)}", EXPORT)


def _files(folder: Path) -> Iterator[Path]:
  for parent, folders, names in os.walk(folder):
    folders.sort()
    yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _reader(path: Path) -> sitk.ImageFileReader:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("GDCMImageIO")
  reader.SetFileName(str(path) if is_utf8(str(path)) else linked(path))
  return reader


def _preamble(path: Path) -> bytes:
  """Returns the first bytes of a DICOM file, b"" for any other file."""
  head = _head(path)
  return head if head[128:132] == b"DICM" else b""


def _head(path: Path) -> bytes:
  with path.open("rb") as stream:
    return stream.read(1024)


def _class_of(head: bytes) -> str:
  """Returns the SOP class from the file meta header, which is always explicit little endian."""
  match = re.search(rb"\x02\x00\x02\x00UI..([0-9.]+)", head, re.DOTALL)
  return match.group(1).decode() if match else ""


def _text(reader: sitk.ImageFileReader, tag: str) -> str:
  # SimpleITK does not strip the padding to an even length.
  return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
  return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-4, atol=1e-4))
