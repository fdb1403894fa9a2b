"""Lists the images of a batch, recognises those of an earlier run, and checks the output folder.

None of this needs a network.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.formats import dicom
from condseg_jax.formats import files
from condseg_jax.formats.voxels import check_file
from condseg_jax.report.results import overwriting
from condseg_jax.report.results import safe_name

DESCRIPTION_CHARACTERS = 40  # of a SeriesDescription that are kept in file names
# Of the names of results, to which suffixes and class names are added; systems allow 255.
STEM_BYTES = 130


class InputImage(NamedTuple):
  """One image of a batch.

  Attributes:
    path: file or DICOM folder.
    stem: beginning of the names of its results, see `result_stem`.
    series: SeriesInstanceUID in the folder; "" for its only one, or for a file.
    origin: address from which the folder was fetched; "" for local images.
  """

  path: Path
  stem: str
  series: str = ""
  origin: str = ""

  @property
  def label(self) -> str:
    """The name of the image in messages."""
    place = self.origin or str(self.path)
    return f"{place} ({self.stem})" if self.series else place


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
      return [InputImage(source, _series_stem(result_stem(source), one), one.uid)
              for one in series_list]
  return [InputImage(path, result_stem(path), series) for path in paths]


def result_stem(path: Path) -> str:
  """Returns the beginning of the names of an image's results: its own name, where possible.

  Names that not every file system and format can hold (bytes that are not UTF-8, control
  characters, great length) are replaced by a part of them and a hash, which makes them unique.
  """
  stem = files.stem(path)
  name = _shortened("".join(c if printable(c) == c else "_" for c in stem))
  return name if name == stem else f"{name}_{_digest(os.fsencode(stem))}"


def _series_stem(folder: str, series: dicom.Series) -> str:
  """Names the results of a series; the hash of its UID makes the name unique."""
  words = (series.number, series.description[:DESCRIPTION_CHARACTERS].strip())
  name = _shortened("_".join([folder, *(safe_name(word) for word in words if word)]))
  return f"{name}_{_digest(os.fsencode(series.uid))}"


def _shortened(name: str) -> str:
  return name.encode()[:STEM_BYTES].decode(errors="ignore")


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:8]


def identity(image: InputImage) -> dict[str, object]:
  """Returns what identifies the content of an image: file, size, time of change and SHA-256.

  For an image of several files: their total size, the last change, and the hash of their hashes.

  Raises:
    InputError: a file cannot be read.
  """
  paths = files.members(image.path, image.series)
  for path in paths:
    check_file(path)
  stats = [path.stat() for path in paths]
  return {"file": image.origin or str(image.path), "size": sum(stat.st_size for stat in stats),
          "mtime_ns": max(stat.st_mtime_ns for stat in stats), "sha256": _content_digest(paths)}


def is_unchanged(image: InputImage, recorded: Mapping) -> bool:
  """Returns whether an image still has a recorded `identity`.

  A single file of the same size and time of change is not read.
  """
  try:
    paths = files.members(image.path, image.series)
    if len(paths) == 1:
      stat = paths[0].stat()
      if (stat.st_size, stat.st_mtime_ns) == (recorded.get("size"), recorded.get("mtime_ns")):
        return True
    return recorded.get("sha256") == _content_digest(paths)
  except (InputError, OSError):  # as is reported when it is predicted
    return False


def is_older(image: InputImage, results: Iterable[Path]) -> bool:
  """Returns whether an image has not been changed since its results were written."""
  try:
    changed = max(path.stat().st_mtime_ns for path in files.members(image.path, image.series))
    return changed <= min(path.stat().st_mtime_ns for path in results)
  except (InputError, OSError):
    return False


def _content_digest(paths: Sequence[Path]) -> str:
  digests = []
  for path in paths:
    with path.open("rb") as stream:
      digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
  if len(digests) == 1:
    return digests[0]
  return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def check_apart(images: Sequence[InputImage], source: Path, output: Path, separate: bool) -> None:
  """Raises InputError if results would overwrite images, or be taken for images by the next run.

  Args:
    images: of the batch.
    source: where they were listed, see `list_inputs`.
    output: folder of the results.
    separate: whether masks have the names of classes, which `report.results.check_names` compares.
  """
  folder = output.resolve()
  if source.is_dir() and folder == source.resolve():
    raise InputError(output, "is the folder of the input images", "choose another output folder",
                     usage=True)
  inputs = {image.path.resolve() for image in images}
  for image in images:
    if image.path.is_dir() and {folder, *folder.parents} & {image.path.resolve()}:
      raise InputError(output, f"is inside the DICOM folder {image.path}",
                       "choose another output folder", usage=True)
    for suffix in ("_overlay.png", *(() if separate else (".nii.gz", ".png"))):
      if (folder / f"{image.stem}{suffix}").resolve() in inputs:
        raise overwriting(output / f"{image.stem}{suffix}")


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
