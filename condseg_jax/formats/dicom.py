"""A folder of DICOM slices to one `Volume`, by SimpleITK (GDCM).

Slices are grouped by SeriesInstanceUID and ordered by their position along the normal of the image
plane, never by name or instance number. What would make a wrong volume is refused by name: several
series, two slices in one place, a missing slice, slices of another size or orientation, a gantry
tilt, several frames in one file.

Standard: DICOM PS3.3, C.7.6.2 (Image Plane).
"""

import functools
import math
import os
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.sitk import check_directions
from condseg_jax.formats.sitk import DTYPES
from condseg_jax.formats.sitk import last_line
from condseg_jax.formats.sitk import LPS_TO_RAS
from condseg_jax.formats.voxels import check_finite
from condseg_jax.formats.voxels import Header
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

SERIES_ID, SERIES_NAME, MODALITY = "0020|000e", "0008|103e", "0008|0060"
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
SLICE_SPACING, SLICE_THICKNESS = "0018|0088", "0018|0050"
SERIES_NUMBER = "0020|0011"
# Objects that lie beside images and are none: directories (DICOMDIR), presentation states, reports,
# segmentations, plans.
NO_IMAGE = ("1.2.840.10008.1.3.10", *(f"1.2.840.10008.5.1.4.1.1.{part}" for part in
                                      ("11.", "88.", "66", "481.", "104.")))
MAX_GAP_ERROR = 0.05  # of the slice distance; a missing slice is an error of 1
MAX_TILT_DEGREES = 0.5
MIN_AREA = 0.1  # spanned by the unit vectors of rows and columns: 1 if perpendicular
AGAIN = "copy or download it again"


class _Slice(NamedTuple):
  path: Path
  series: str
  name: str
  size: tuple[int, ...]
  dtype: np.dtype
  components: int
  tags: dict[str, str]

  def numbers(self, tag: str) -> tuple[float, ...]:
    """The finite numbers of a tag; () if it holds anything else."""
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
    folder: with the slices of one or more series, in it or in its sub-folders.
    series: SeriesInstanceUID, where there are several.

  Returns:
    Volume in the order (x, y, z): columns, rows, slices; affine in RAS+ mm. Rescale slope and
    intercept are applied slice by slice.

  Raises:
    InputError: see the module's docstring; also damaged slices and missing positions.
  """
  folder = Path(folder)
  slices, geometry = _ordered(folder, series)
  array = np.empty(geometry.shape, np.result_type(*(s.dtype for s in slices)), order="F")
  for index, one in enumerate(slices):
    try:
      image = _reader(one.path).Execute()  # named: the view is of its memory
      array[..., index] = sitk.GetArrayViewFromImage(image)[0].T
    except RuntimeError as error:
      raise InputError(one.path, f"cannot be read ({last_line(error)})", AGAIN,
                       kind="truncated") from error
  check_finite(folder, array)
  return Volume(array, geometry.affine)


def read_series_header(folder: str | os.PathLike, series: str = "") -> Header:
  """Shape and affine of a series from the headers of its slices; no voxel is read.

  Raises:
    InputError: as `read_series`, as far as the headers tell.
  """
  slices, geometry = _ordered(Path(folder), series)
  itemsize = np.result_type(*(s.dtype for s in slices)).itemsize
  return Header(geometry, int(np.prod(geometry.shape)) * itemsize)


def series_members(folder: str | os.PathLike, series: str = "") -> list[Path]:
  """The files of a series, in the order of its slices: of the last axis of its `Volume`."""
  return [one.path for one in _ordered(Path(folder), series)[0]]


def series_modality(folder: str | os.PathLike, series: str = "") -> str:
  """What made a series, as it says itself: CT, MR, PT, …; "" if it does not."""
  return _ordered(Path(folder), series)[0][0].tags.get(MODALITY, "").strip(" \0").upper()


def holds_dicom(folder: str | os.PathLike) -> bool:
  """Whether a folder, or one inside it, holds a DICOM file; looks no further than the first."""
  return any(_preamble(path) for path in _files(Path(folder)))


def forget() -> None:
  """Drops what is remembered of folders, for a process that reads one after the other for ever."""
  _scanned_files.cache_clear()


def _ordered(folder: Path, series: str) -> tuple[list[_Slice], Geometry]:
  slices = _chosen(folder, _scanned(folder), series)
  first = slices[0]
  for one in slices:
    _check_slice(one)
    if one.size != first.size:
      raise InputError(one.path, f"a slice of {one.size[:2]} where others have {first.size[:2]}",
                       "remove it from the series")
    if not _close(one.numbers(ORIENTATION), first.numbers(ORIENTATION)) or not _close(
        one.numbers(PIXEL_SPACING), first.numbers(PIXEL_SPACING)):
      raise InputError(one.path, "a slice of another orientation or pixel spacing than the rest of "
                       "the series", "remove it, e.g. a localiser")
  across, down = np.reshape(first.numbers(ORIENTATION), (2, 3))
  check_directions((across, down), first.path)
  if min(first.numbers(PIXEL_SPACING)) <= 0:
    raise InputError(first.path, f"PixelSpacing {first.numbers(PIXEL_SPACING)} mm",
                     "export the original series again", kind="affine")
  normal = np.cross(across, down)
  if np.linalg.norm(normal) < MIN_AREA:
    raise InputError(first.path, "its rows and columns point the same way",
                     "export the original series again", kind="affine")
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


def _step(folder: Path, order, positions, normal) -> np.ndarray:
  """From one slice to the next, in mm; refuses what is no regular stack."""
  if len(order) == 1:
    gap = order[0].numbers(SLICE_SPACING) or order[0].numbers(SLICE_THICKNESS)
    if not gap:
      raise InputError(folder, "holds one slice that does not say its thickness",
                       "check that all slices are there", kind="affine")
    return normal * gap[0]
  gaps = np.diff(positions @ normal)
  usual = float(np.median(gaps))
  if gaps.min() <= MAX_GAP_ERROR * usual or usual <= 0:
    where = int(np.argmin(gaps))
    raise InputError(folder, f"two slices lie in one place: {order[where].path.name} and "
                     f"{order[where + 1].path.name}",
                     "keep one time point or phase, or remove the copies")
  worst = int(np.argmax(np.abs(gaps - usual)))
  if abs(gaps[worst] - usual) > MAX_GAP_ERROR * usual:
    raise InputError(folder, f"slices are {usual:.4g} mm apart, but {gaps[worst]:.4g} mm after "
                     f"{order[worst].path.name}: a slice is missing, or the distance varies",
                     "complete the series, or resample it, e.g. with dcm2niix")
  step = (positions[-1] - positions[0]) / (len(order) - 1)
  drift = np.linalg.norm(step - normal * (step @ normal))
  tilt = float(np.degrees(np.arctan2(drift, step @ normal)))
  if tilt > MAX_TILT_DEGREES:
    raise InputError(folder, f"gantry tilt of {tilt:.1f} degrees: the slices are no upright stack",
                     "correct the tilt first, e.g. with dcm2niix")
  return step


def _chosen(folder: Path, slices: list[_Slice], series: str) -> list[_Slice]:
  groups: dict[str, list[_Slice]] = {}
  for one in slices:
    groups.setdefault(one.series, []).append(one)
  if not groups:
    raise InputError(folder, "holds no DICOM image", "name the folder of the slices")
  told = "; ".join(f"{key or 'without id'} ({group[0].name or 'unnamed'}, {len(group)} slices)"
                   for key, group in groups.items())
  if series:
    if series not in groups:
      raise InputError(folder, f"holds no series {series}", f"it holds {told}")
    return groups[series]
  if len(groups) > 1:
    raise InputError(folder, f"holds {len(groups)} series", "name one by its id, with --series "
                     f"or in a description, or keep one alone: {told}")
  return next(iter(groups.values()))


def _scanned(folder: Path) -> list[_Slice]:
  """The images under a folder; remembered while its files stay, for a header costs milliseconds."""
  if not folder.is_dir():
    raise InputError(folder, "does not exist" if not folder.exists() else "is not a folder",
                     "name the folder of a DICOM series")
  stats = ((path, path.stat()) for path in _files(folder))
  return _scanned_files(tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@functools.lru_cache(maxsize=4096)
def _scanned_files(stamps: tuple[tuple[Path, int, int], ...]) -> list[_Slice]:
  slices = []
  for path, _, _ in stamps:
    reader = _reader(path)
    try:
      reader.ReadImageInformation()
    except RuntimeError as error:
      head = _preamble(path)
      if head and not _class_of(head).startswith(NO_IMAGE):
        raise InputError(path, f"is damaged, or compressed in an unknown way ({last_line(error)})",
                         AGAIN, kind="truncated") from error
      continue  # not DICOM, or not an image
    wanted = (POSITION, ORIENTATION, PIXEL_SPACING, SLICE_SPACING, SLICE_THICKNESS, MODALITY,
              SERIES_NUMBER)
    tags = {tag: reader.GetMetaData(tag).strip() for tag in wanted if reader.HasMetaDataKey(tag)}
    dtype = np.dtype(DTYPES.get(reader.GetPixelIDValue(), np.float32))
    slices.append(_Slice(path, _text(reader, SERIES_ID), _text(reader, SERIES_NAME),
                         tuple(reader.GetSize()), dtype if dtype != np.float64 else
                         np.dtype(np.float32), reader.GetNumberOfComponents(), tags))
  return slices


def _check_slice(one: _Slice) -> None:
  if one.components > 1:
    raise InputError(one.path, "is a colour picture", "name a series of grey values")
  if len(one.size) > 2 and one.size[2] > 1:
    raise InputError(one.path, f"holds {one.size[2]} frames in one file",
                     "split it into single slices, or convert it, e.g. with dcm2niix")
  for tag, count, name in ((POSITION, 3, "ImagePositionPatient"),
                           (ORIENTATION, 6, "ImageOrientationPatient"),
                           (PIXEL_SPACING, 2, "PixelSpacing")):
    if len(one.numbers(tag)) != count:
      raise InputError(one.path, f"has no {name}: it does not say where it lies",
                       "export the original series again", kind="affine")


def _files(folder: Path):
  for parent, folders, names in os.walk(folder):
    folders.sort()
    yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _reader(path: Path) -> sitk.ImageFileReader:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("GDCMImageIO")
  reader.SetFileName(str(path))
  return reader


def _preamble(path: Path) -> bytes:
  """The first bytes of a DICOM file, b"" of any other."""
  with path.open("rb") as stream:
    head = stream.read(1024)
  return head if head[128:132] == b"DICM" else b""


def _class_of(head: bytes) -> str:
  """SOP class from the file's meta header, which is always explicit little endian."""
  found = re.search(rb"\x02\x00\x02\x00UI..([0-9.]+)", head, re.DOTALL)
  return found.group(1).decode() if found else ""


def _text(reader, tag: str) -> str:
  # SimpleITK keeps the padding to an even length.
  return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""


def _close(a, b) -> bool:
  return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-4, atol=1e-4))
