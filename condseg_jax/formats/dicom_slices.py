"""The slices under a folder of DICOM files: their headers, and the checks of a single one.

The first or last slice of a series can be missing without a gap. A file that cannot be read, but
looks like a slice by its name, its first bytes or its lack of any, is therefore refused; other
files, such as notes, are skipped.
"""

from collections.abc import Iterator
import functools
import math
import os
from pathlib import Path
import re
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats.sitk import DTYPES
from condseg_jax.formats.sitk import is_utf8
from condseg_jax.formats.sitk import last_line
from condseg_jax.formats.sitk import linked
from condseg_jax.formats.voxels import AGAIN
from condseg_jax.formats.voxels import check_file

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
EXPORT = "export the original series again"


class Slice(NamedTuple):
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


def contains_dicom(folder: str | os.PathLike) -> bool:
  """Returns whether a folder or one of its subfolders contains a DICOM file."""
  return any(path.is_file() and _preamble(path) for path in _files(Path(folder)))


def clear_header_cache() -> None:
  """Clears the cache of headers; a long-running process calls it after each series."""
  _headers.cache_clear()


def scanned(folder: Path) -> list[Slice]:
  """Reads the headers of the images under a folder; cached while the files are unchanged."""
  if not folder.is_dir():
    raise InputError(folder, "does not exist" if not folder.exists() else "is not a folder",
                     "give the folder of a DICOM series")
  stamps = []
  for path in _files(folder):
    check_file(path)
    stat = path.stat()
    stamps.append((path, stat.st_mtime_ns, stat.st_size))
  return _headers(tuple(stamps))


@functools.lru_cache(maxsize=64)  # folders; bounds the memory of a long batch
def _headers(stamps: tuple[tuple[Path, int, int], ...]) -> list[Slice]:
  slices, unread = [], []
  for path, _, size in stamps:
    reader = reader_of(path)
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
    slices.append(Slice(path, _text(reader, SERIES_ID), _text(reader, SERIES_NAME),
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


def check_slice(item: Slice) -> None:
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


def _check_values(item: Slice) -> None:
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


def reader_of(path: Path) -> sitk.ImageFileReader:
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
