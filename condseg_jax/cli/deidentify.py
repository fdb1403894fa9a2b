"""condseg-deidentify FOLDER --out=DIR

Copies the DICOM files of a folder without what identifies patients, by the basic profile of DICOM
PS3.15, for example before they are given to somebody who trains with them.

  condseg-deidentify /export --out=clean

Names, dates, private attributes and descriptions go; identifiers are replaced, each by the same one
in all files; pixel data stay as they are, byte by byte. DIR/PATIENT/SERIES/INSTANCE.dcm are the
results. What may show a name in its pixels, such as ultrasound and screenshots, lies in DIR/review
instead, with the reasons in DIR/deidentified.json. Files that are not DICOM are left out.

Faces are not removed from images of heads: use a program for defacing.

Exit code 1 if a file is in DIR/review, or could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import json
import os
from pathlib import Path
import sys
from typing import NamedTuple
from typing import TYPE_CHECKING
import warnings

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError

if TYPE_CHECKING:
  from condseg_jax.formats.dicom_deidentify import Deidentifier

REVIEW, REPORT = "review", "deidentified.json"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv, positional="FOLDER")


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("out", "", "New folder for the results.", flag_values=values)


def _work(values: flags.FlagValues, source: str) -> int:
  shell.require(values, "out")
  try:
    from condseg_jax.formats.dicom_deidentify import Deidentifier
    from condseg_jax.formats.dicom_deidentify import EDITION
  except ModuleNotFoundError as error:
    raise InputError(f"package {error.name}", "is not installed",
                     'pip install "condseg-jax[deidentify]"') from error
  from condseg_jax.system.atomic import write_text

  root, out = Path(source), Path(values.out)
  _check_folders(root, out)
  deidentifier = Deidentifier()
  out.mkdir(parents=True, exist_ok=True)
  failures, review, written, others = [], {}, 0, 0
  for path in _files(root):
    try:
      result = _copy(deidentifier, path, out)
    except InputError as error:
      failures.append(str(error))
      continue
    if result is None:
      others += 1
    elif result.reasons:
      review[result.path.relative_to(out).as_posix()] = result.reasons
    else:
      written += 1
  if not (written or review or failures):
    raise InputError(source, "contains no DICOM files", "give the folder of an export")
  write_text(out / REPORT, json.dumps({
      "profile": f"DICOM PS3.15 {EDITION}, Basic Application Level Confidentiality Profile",
      "written": written, "failed": len(failures), "left_out": others, "review": review},
                                      indent=1) + "\n")
  print(f"{written} files de-identified; {len(review)} to be looked at, in {out / REVIEW}; "
        f"{others} left out that are not DICOM")
  for failure in failures:
    print(f"failed: {failure}", file=sys.stderr)
  return 1 if failures or review else 0


class _Copy(NamedTuple):
  """A file that was written, and why it has to be looked at."""

  path: Path
  reasons: list[str]


def _copy(deidentifier: Deidentifier, path: Path, out: Path) -> _Copy | None:
  """De-identifies a file; None for one that is not DICOM.

  Raises:
    InputError: it cannot be read or written, or a file before it had the same identifier.
  """
  import pydicom
  from pydicom.errors import InvalidDicomError

  from condseg_jax.system.atomic import replacing
  try:
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
      warnings.simplefilter("ignore")  # about what others wrote
      dataset = pydicom.dcmread(path)
      if "DirectoryRecordSequence" in dataset:  # DICOMDIR: names patients, and the former files
        return None
      reasons = deidentifier.apply(dataset)
      folder = out / REVIEW if reasons else out
      folder /= f"{dataset.PatientID}/{dataset.get('SeriesInstanceUID') or 'other'}"
      target = folder / f"{dataset.SOPInstanceUID}.dcm"
      if target.exists():
        raise InputError("it", "has the SOPInstanceUID of another file", "keep one of them")
      folder.mkdir(parents=True, exist_ok=True)
      with replacing(target) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
  except InvalidDicomError:
    return None
  except InputError as error:
    raise InputError(path, f"{error.subject} {error.reason}", error.cure) from error
  except OSError as error:
    raise InputError(path, error.strerror or str(error), "check permissions and free space"
                     ) from error
  except Exception as error:  # of the parser: whatever the file may contain
    raise InputError(path, f"cannot be de-identified ({type(error).__name__})",
                     "leave it out, or convert it") from error
  return _Copy(target, reasons)


def _check_folders(root: Path, out: Path) -> None:
  """Raises InputError for folders that cannot be input and output."""
  if not root.is_dir():
    raise InputError(root, "is not a folder", "give the folder of an export", usage=True)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(out, "exists and is not empty", "choose a new folder for --out", usage=True)
  if out.resolve().is_relative_to(root.resolve()):
    raise InputError(out, "lies in the folder of the originals", "choose another one for --out",
                     usage=True)


def _files(root: Path) -> Iterator[Path]:
  """Returns the files below a folder, in the order of their names."""
  for parent, folders, names in os.walk(root):
    folders.sort()
    yield from (Path(parent, name) for name in sorted(names) if Path(parent, name).is_file())


if __name__ == "__main__":
  sys.exit(main())
