"""The source series of a segmentation, and the attributes that DICOM results copy from it.

Needs the extra `dicom`, which is imported where it is used.

Anonymised series often lack identifiers that the standard requires. SOP identifiers are then taken
from the file meta header; those of study, series and frame of reference are derived from the
remaining ones, equally for all results of a series. A series without identifiers of its slices is
refused, since no DICOM object could refer to them.
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
import struct
from typing import NamedTuple
from typing import TYPE_CHECKING
import uuid

import numpy as np

from condseg_jax.classes import hue
from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import planes
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import Volume

if TYPE_CHECKING:
  from pydicom import Dataset

SOFTWARE = "condseg_jax"
UTF_8 = "ISO_IR 192"
SHORT_TEXT = 1024  # bytes of an ST value
LONG_STRING = 64  # maximal length of a DICOM LO value
SERIES_OFFSET = 1000  # keeps the series numbers of results apart from those of scanners
# Attributes of patient and study that a result copies; empty if the series does not have them.
REPEATED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
            "ReferringPhysicianName", "StudyID", "AccessionNumber")
# What pydicom and highdicom raise about elements that are invalid or missing.
UNDECODABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError,
               ValueError, struct.error)
FORMS = {"StudyTime": r"([01]\d|2[0-3])([0-5]\d){0,2}(\.\d{1,6})?", "PatientSex": "[MFO]"}


class Source(NamedTuple):
  """A series.

  Attributes:
    folder: folder of its files.
    slices: headers (pydicom datasets), in the order of the last axis of the series' `Volume`.
    geometry: grid of that volume: columns, rows, slices.
  """

  folder: Path
  slices: list
  geometry: Geometry


class Structure(NamedTuple):
  """One class in a segmentation.

  Attributes:
    number: from 1, without gaps.
    name: name of the class.
    index: its value in a label map, or its channel in masks.
    color: red, green, blue, 0–255.
  """

  number: int
  name: str
  index: int
  color: tuple[int, int, int]

  def mask(self, array: np.ndarray) -> np.ndarray:
    """Returns the bool mask of the class from a label map, masks, or a slice of either."""
    return array[..., self.index] if array.dtype == bool else array == self.index


def extra_installed() -> bool:
  """Returns whether the extra `dicom` can be imported."""
  return all(importlib.util.find_spec(name) for name in ("pydicom", "highdicom"))


def require_extra() -> None:
  """Raises InputError if the extra `dicom` is not installed."""
  if not extra_installed():
    raise InputError("DICOM output", "needs pydicom and highdicom",
                     'pip install "condseg-jax[dicom]"')


@contextlib.contextmanager
def lenient() -> Iterator[None]:
  """Disables pydicom's validation, since headers of scanners and archives are often invalid."""
  require_extra()
  from pydicom import config
  with config.disable_value_validation():
    yield


@contextlib.contextmanager
def writing(source: Source, kind: str) -> Iterator[None]:
  """As `lenient`, while an object of some kind is made of a series.

  Raises:
    InputError: an element of the series, which pydicom decodes when it is first used, is invalid
      or missing.
  """
  with lenient():
    try:
      yield
    except InputError:
      raise
    except UNDECODABLE as error:
      raise InputError(source.folder, f"cannot be the source of a {kind} ({error})",
                       "export the original series again") from error


@contextlib.contextmanager
def _decoded(path: Path) -> Iterator[None]:
  """Turns errors of pydicom, which decodes an element when it is first used, into InputError."""
  try:
    yield
  except InputError:
    raise
  except UNDECODABLE as error:
    raise InputError(path, f"has an invalid element ({error})", AGAIN) from error


def read_source(folder: str | os.PathLike, series: str = "") -> Source:
  """Reads the headers and the grid of a series, without voxels.

  Args:
    folder: see `dicom.read_series`.
    series: see `dicom.read_series`.

  Raises:
    InputError: as `dicom.read_series_header`; the extra is missing; a slice has no identifier.
  """
  require_extra()
  import pydicom
  paths = dicom.series_members(folder, series)
  geometry = dicom.read_series_header(folder, series).geometry
  with lenient():
    slices = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths]
    for path, header in zip(paths, slices, strict=True):
      with _decoded(path):
        _complete_slice(path, header)
    with _decoded(paths[0]):
      _complete_series(slices)
  return Source(Path(folder), slices, geometry)


def on_grid(source: Source, volume: Volume) -> np.ndarray:
  """Returns a label map or masks with the axes of the series: columns, rows, slices (, channels).

  Args:
    source: the series.
    volume: on the grid of the series, with axes in any order and direction.

  Raises:
    InputError: the volume is on another grid.
  """
  array = match_grid(source.folder, source.geometry, "segmentation", volume).array
  return np.asfortranarray(array)  # contiguous slices, since processing is slice by slice


def structures(array: np.ndarray, names: Mapping[str, int],
               colors: Mapping[str, Sequence[int]]) -> list[Structure]:
  """Returns the classes with a voxel in a segmentation, or all classes if it is empty.

  Many programs cannot read a segment without a voxel.

  Args:
    array: label map, or bool masks with a last axis of channels.
    names: class → value in the label map, or class → its channel + 1.
    colors: class → red, green, blue, 0–255; evenly spread hues by default.

  Raises:
    InputError: a value of the label map that is not in `names`.
  """
  if array.dtype == bool:
    indices = {name: value - 1 for name, value in names.items()}
    present = set(np.flatnonzero(array.any(axis=(0, 1, 2))).tolist())
  else:
    indices = dict(names)
    occurs = np.zeros(int(array.max()) + 1, bool)
    for plane in planes(array):  # bounds the working memory
      occurs[plane] = True
    present = set(np.flatnonzero(occurs).tolist()) - {0}
    unnamed = present - set(indices.values())
    if unnamed:
      raise InputError("segmentation", f"contains the value {min(unnamed)}, which has no class",
                       "add its class to `names`")
  kept = [name for name, index in indices.items() if index in present] or list(indices)
  return [Structure(i, name, indices[name],
                    tuple(int(c) for c in colors.get(name, hue(names[name] - 1))))
          for i, name in enumerate(kept, 1)]


def result_uid(source: Source, *parts: str) -> str:
  """Returns an identifier that is the same for the same result (`parts`) of the same series."""
  first = source.slices[0]
  return _uid(first.SeriesInstanceUID, first.SOPInstanceUID, *parts)


def digest(array: np.ndarray, classes: Sequence[Structure],
           remarks: Mapping[str, str] | None = None) -> str:
  """Returns the SHA-256 of a segmentation, its classes, and what is said of them."""
  sha256 = hashlib.sha256(repr((array.shape, str(array.dtype), classes)).encode())
  if remarks:
    sha256.update(repr(sorted(remarks.items())).encode())
  for plane in planes(array):
    sha256.update(np.ascontiguousarray(plane))
  return sha256.hexdigest()


def series_number(source: Source, kind: int) -> int:
  """Returns a series number for results: that of the series plus `kind` thousand."""
  number = str(source.slices[0].get("SeriesNumber") or 0)
  return kind * SERIES_OFFSET + (int(number) % SERIES_OFFSET if number.isdigit() else 0)


def series_description(source: Source, kind: str) -> str:
  """Returns a description for a series of results, such as "condseg_jax outlines of T1"."""
  origin = str(source.slices[0].get("SeriesDescription") or "").strip()
  return short_text(f"{SOFTWARE} {kind}" + (f" of {origin}" if origin else ""))


def short_text(text: str, most: int = LONG_STRING) -> str:
  """Returns a valid DICOM LO value: no backslash, which separates values, and limited length.

  The length is limited in bytes: the standard counts characters, but some readers count bytes.
  """
  text = re.sub(r"[\\\x00-\x1f]", "/", text)
  return text.encode()[:most].decode(errors="ignore").strip()


def remark(text: str) -> str:
  """Returns a valid DICOM ST value, of one line."""
  return short_text(text, SHORT_TEXT)


def _complete_slice(path: Path, header: "Dataset") -> None:
  """Fills in missing attributes of a slice."""
  meta = header.file_meta
  header.SOPInstanceUID = header.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID", "")
  header.SOPClassUID = header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", "")
  if not header.SOPInstanceUID or not header.SOPClassUID:
    raise InputError(path, "has no SOPInstanceUID or SOPClassUID, so no object can refer to it",
                     "anonymise by replacing identifiers instead of removing them")
  for keyword in REPEATED:
    value = header.get(keyword)
    valid = value is not None and _well_formed(keyword, str(value))
    setattr(header, keyword, value if valid else "")


def _well_formed(keyword: str, text: str) -> bool:
  """Returns whether a value is valid; highdicom refuses an invalid date, for example."""
  if not keyword.endswith("Date"):
    return re.fullmatch(FORMS.get(keyword, ".*"), text, re.DOTALL) is not None
  with contextlib.suppress(ValueError):
    return len(text) == 8 and bool(datetime.datetime.strptime(text, "%Y%m%d"))
  return False


def _complete_series(slices: Sequence["Dataset"]) -> None:
  """Fills in missing identifiers, and copies those of the first slice to all slices."""
  first = slices[0]
  # The series of an examination share the frame of reference, so that results of several series
  # belong to one study if it is known.
  known = first.get("FrameOfReferenceUID") or first.SOPInstanceUID
  uids = {"StudyInstanceUID": first.get("StudyInstanceUID") or _uid("study", known),
          "SeriesInstanceUID": first.get("SeriesInstanceUID") or _uid("series",
                                                                      first.SOPInstanceUID),
          "FrameOfReferenceUID": first.get("FrameOfReferenceUID") or _uid("frame", known)}
  for header in slices:
    for keyword, value in uids.items():
      setattr(header, keyword, value)
    for keyword in ("StudyInstanceUID", *REPEATED):
      setattr(header, keyword, first.get(keyword))


def _uid(*parts: str) -> str:
  """Returns a DICOM identifier from a name-based UUID; standard: PS3.5, B.2."""
  return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}"
