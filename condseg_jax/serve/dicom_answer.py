"""An answer of DICOM objects: the object itself, or a zip archive of several."""

from collections.abc import Mapping
import os
from pathlib import Path
import zipfile

SUFFIX = ".dcm"
OBJECT = f"object{SUFFIX}"  # the only one


def pack(objects: Mapping[str, Path], answer: Path) -> None:
  """Makes an answer of DICOM files.

  Args:
    objects: kind → file; a single one is moved.
    answer: file to write.
  """
  if len(objects) == 1:
    next(iter(objects.values())).rename(answer)
    return
  with zipfile.ZipFile(answer, "w") as archive:
    for kind, path in objects.items():
      archive.write(path, kind + SUFFIX)


def unpack(answer: Path, folder: Path) -> list[Path]:
  """Returns the DICOM files of an answer, in a new folder on its file system."""
  folder.mkdir()
  if not zipfile.is_zipfile(answer):
    os.link(answer, folder / OBJECT)
    return [folder / OBJECT]
  with zipfile.ZipFile(answer) as archive:  # written by `pack`
    return [Path(archive.extract(name, folder)) for name in sorted(archive.namelist())]
