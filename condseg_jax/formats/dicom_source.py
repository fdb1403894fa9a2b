"""The DICOM series that a segmentation belongs to, and what objects made from it repeat of it.

Needs the extra `dicom`; it is imported where it is used.

Anonymised series often lack identifiers that the standard demands. What the meta header of a file
says is taken from there; study, series and frame of reference are named after what is left, the
same for every result of the series. Without the identifiers of its slices nothing can refer to
them, and the series is refused.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import datetime
import hashlib
import importlib.util
import os
from pathlib import Path
import re
from typing import NamedTuple
import uuid

import numpy as np

from condseg_jax.classes import hue
from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats.voxels import planes
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import Volume

SOFTWARE = "condseg_jax"
UTF_8 = "ISO_IR 192"
LONG_STRING = 64  # characters that a short text of DICOM (LO) may have
SERIES_OFFSET = 1000  # results have series numbers that a scanner hardly gives
# What a result repeats of patient and study; empty where the series does not say it.
REPEATED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
            "ReferringPhysicianName", "StudyID", "AccessionNumber")
FORMS = {"StudyTime": r"([01]\d|2[0-3])([0-5]\d){0,2}(\.\d{1,6})?", "PatientSex": "[MFO]"}


class Source(NamedTuple):
  """A series.

  Attributes:
    folder: of its files.
    slices: their headers (pydicom datasets) in the order of the last axis of the series' `Volume`.
    geometry: of that volume: columns, rows, slices.
  """

  folder: Path
  slices: list
  geometry: Geometry


class Structure(NamedTuple):
  """One class in a segmentation.

  Attributes:
    number: from 1, without gaps.
    name: of the class.
    index: its value in a label map, or its channel among masks.
    color: red, green, blue, 0–255.
  """

  number: int
  name: str
  index: int
  color: tuple[int, int, int]

  def mask(self, array: np.ndarray) -> np.ndarray:
    """bool, the voxels of the class in a label map, masks, or a slice of either."""
    return array[..., self.index] if array.dtype == bool else array == self.index


def extra_installed() -> bool:
  """Whether the extra `dicom` can be imported."""
  return all(importlib.util.find_spec(name) for name in ("pydicom", "highdicom"))


def need_extra() -> None:
  """Raises InputError where the extra `dicom` is not installed."""
  if not extra_installed():
    raise InputError("DICOM output", "needs pydicom and highdicom",
                     'pip install "condseg-jax[dicom]"')


@contextlib.contextmanager
def lenient() -> Iterator[None]:
  """Values that break DICOM's rules pass: what a scanner or an archive wrote is not judged here."""
  need_extra()
  from pydicom import config
  with config.disable_value_validation():
    yield


def read_source(folder: str | os.PathLike, series: str = "") -> Source:
  """The headers and the grid of a series; no voxel is read.

  Args:
    folder, series: as `dicom.read_series`.

  Raises:
    InputError: as `dicom.read_series_header`; the extra is missing; a slice has no identifier.
  """
  need_extra()
  import pydicom
  paths = dicom.series_members(folder, series)
  geometry = dicom.read_series_header(folder, series).geometry
  with lenient():
    slices = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths]
    for path, one in zip(paths, slices, strict=True):
      _complete_slice(path, one)
    _complete_series(slices)
  return Source(Path(folder), slices, geometry)


def on_grid(source: Source, volume: Volume) -> np.ndarray:
  """The voxels of a label map or of masks, columns, rows, slices of the series (and channels).

  Args:
    source: the series.
    volume: on its grid, along any of its axes.

  Raises:
    InputError: it lies elsewhere.
  """
  array = match_grid(source.folder, source.geometry, "segmentation", volume).array
  return np.asfortranarray(array)  # what follows goes slice by slice


def structures(array: np.ndarray, names: Mapping[str, int],
               colors: Mapping[str, Sequence[int]]) -> list[Structure]:
  """The classes that a segmentation shows; all that were looked for where it shows none.

  Programs stumble over a class that is described and has no voxel.

  Args:
    array: label map, or bool masks with a last axis of channels.
    names: class → value in the label map, or class → its channel + 1.
    colors: class → red, green, blue, 0–255; evenly spread hues where none is given.

  Raises:
    InputError: a label map with a value that is no class.
  """
  if array.dtype == bool:
    indices = {name: value - 1 for name, value in names.items()}
    shown = set(np.flatnonzero(array.any(axis=(0, 1, 2))).tolist())
  else:
    indices = dict(names)
    seen = np.zeros(int(array.max()) + 1, bool)
    for plane in planes(array):  # bounds the working memory
      seen[plane] = True
    shown = set(np.flatnonzero(seen).tolist()) - {0}
    if shown - set(indices.values()):
      raise InputError("segmentation", f"holds the value {min(shown - set(indices.values()))}, "
                       "which is no class", "name its class")
  kept = [name for name, index in indices.items() if index in shown] or list(indices)
  return [Structure(i, name, indices[name],
                    tuple(int(c) for c in colors.get(name, hue(names[name] - 1))))
          for i, name in enumerate(kept, 1)]


def result_uid(source: Source, *parts: str) -> str:
  """An identifier that the same result of the same series gets again."""
  first = source.slices[0]
  return _uid(first.SeriesInstanceUID, first.SOPInstanceUID, *parts)


def digest(array: np.ndarray, found: Sequence[Structure]) -> str:
  """What tells one segmentation from another."""
  code = hashlib.sha256(repr((array.shape, str(array.dtype), found)).encode())
  for plane in planes(array):
    code.update(np.ascontiguousarray(plane))
  return code.hexdigest()


def series_number(source: Source, kind: int) -> int:
  """A series number for results: thousands apart from that of the series."""
  number = str(source.slices[0].get("SeriesNumber") or 0)
  return kind * SERIES_OFFSET + (int(number) % SERIES_OFFSET if number.isdigit() else 0)


def series_description(source: Source, what: str) -> str:
  """A title of a series of results."""
  of = str(source.slices[0].get("SeriesDescription") or "").strip()
  return short_text(f"{SOFTWARE} {what}" + (f" of {of}" if of else ""))


def short_text(text: str) -> str:
  """A text as DICOM takes it: without a backslash, which divides, and not too long.

  Readers count the bytes, though the standard counts characters.
  """
  text = re.sub(r"[\\\x00-\x1f]", "/", text)
  return text.encode()[:LONG_STRING].decode(errors="ignore").strip()


def _complete_slice(path: Path, one) -> None:
  """Fills in what a slice does not say of itself."""
  meta = one.file_meta
  one.SOPInstanceUID = one.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID", "")
  one.SOPClassUID = one.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", "")
  if not one.SOPInstanceUID or not one.SOPClassUID:
    raise InputError(path, "has no SOPInstanceUID or SOPClassUID: no DICOM object can refer to it",
                     "anonymise with new identifiers instead of none")
  for keyword in REPEATED:
    value = one.get(keyword)
    setattr(one, keyword, value if value is not None and _well_formed(keyword, str(value)) else "")


def _well_formed(keyword: str, text: str) -> bool:
  """Whether a value may be repeated: highdicom takes no date that is none."""
  if not keyword.endswith("Date"):
    return re.fullmatch(FORMS.get(keyword, ".*"), text, re.DOTALL) is not None
  with contextlib.suppress(ValueError):
    return len(text) == 8 and bool(datetime.datetime.strptime(text, "%Y%m%d"))
  return False


def _complete_series(slices: Sequence) -> None:
  first = slices[0]
  # The frame of reference is common to the series of an examination, so that, where it is known,
  # their results are of one study.
  known = first.get("FrameOfReferenceUID") or first.SOPInstanceUID
  named = {"StudyInstanceUID": first.get("StudyInstanceUID") or _uid("study", known),
           "SeriesInstanceUID": first.get("SeriesInstanceUID") or _uid("series",
                                                                       first.SOPInstanceUID),
           "FrameOfReferenceUID": first.get("FrameOfReferenceUID") or _uid("frame", known)}
  for one in slices:
    for keyword, value in named.items():
      setattr(one, keyword, value)
    for keyword in ("StudyInstanceUID", *REPEATED):
      setattr(one, keyword, first.get(keyword))


def _uid(*parts: str) -> str:
  """A UUID of a name as an identifier of DICOM; standard: PS3.5, B.2."""
  return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}"
