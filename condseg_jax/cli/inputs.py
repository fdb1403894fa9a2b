"""Lists the images of a batch and checks its output folder, before a network is loaded."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats import files
from condseg_jax.report.results import safe_name

DESCRIPTION_CHARACTERS = 40  # of a SeriesDescription that are kept in file names


class InputImage(NamedTuple):
  """One image of a batch.

  Attributes:
    path: file or DICOM folder.
    stem: beginning of the names of its results.
    series: SeriesInstanceUID in the folder; "" for its only one, or for a file.
  """

  path: Path
  stem: str
  series: str = ""

  @property
  def label(self) -> str:
    """The name of the image in messages."""
    return f"{self.path} ({self.stem})" if self.series else str(self.path)


def list_inputs(source: Path, series: str = "") -> list[InputImage]:
  """Lists images, see `files.list_images`; the series of a DICOM folder are listed one by one.

  Args:
    source: an image, a folder, or a text file with one image or DICOM folder per line.
    series: SeriesInstanceUID to select from DICOM folders; all series of `source` when empty.

  Raises:
    InputError: as `files.list_images`; a slice is damaged.
  """
  if source.name in ("", ".."):  # the results are named after it
    source = source.resolve()
  paths = files.list_images(source)
  if paths == [source] and source.is_dir() and not series:
    series_list = dicom.list_series(source)
    if len(series_list) > 1:
      return [InputImage(source, _series_stem(files.stem(source), one), one.uid)
              for one in series_list]
  return [InputImage(path, files.stem(path), series) for path in paths]


def _series_stem(folder: str, series: dicom.Series) -> str:
  """Names the results of a series; the hash of its UID makes the name unique."""
  words = (series.number, series.description[:DESCRIPTION_CHARACTERS].strip())
  digest = hashlib.sha256(series.uid.encode()).hexdigest()[:8]
  return "_".join([folder, *(safe_name(word) for word in words if word), digest])


def check_writable(folder: Path) -> None:
  """Checks, without creating anything, that a folder can be written to or created.

  Raises:
    InputError: it cannot.
  """
  ancestors = (folder.absolute(), *folder.absolute().parents)
  existing = next(path for path in ancestors if path.exists())
  if not existing.is_dir():
    raise InputError(existing, "is not a folder", "choose another output folder")
  if not os.access(existing, os.W_OK):
    raise InputError(existing, "is not writable", "choose another output folder")
