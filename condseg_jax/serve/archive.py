"""Unpacks a zip archive of a DICOM series after checking every member."""

import errno
from pathlib import Path
from pathlib import PurePosixPath
import re
import stat
import zipfile
import zlib

from condseg_jax.serve import signature
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import MAX_NAME
from condseg_jax.serve.request import MEMBER

ENTRY_SIGNATURE = b"PK\x01\x02"  # of every entry of the central directory
BLOCK = 1 << 20  # bytes
ZIP_AGAIN = "zip the folder of the series again, files only"


def unpack(archive: Path, folder: Path, limits: Limits) -> list[str]:
  """Unpacks a zip archive.

  Subfolders and files added by operating systems (hidden files, __MACOSX) are skipped. Names in the
  archive are never used as paths: member i becomes the file `MEMBER` i, with a suffix of letters if
  it has one. A name without suffix and number gets the suffix `.other`, so that it still differs
  from those of slices.

  Args:
    archive: the zip archive.
    folder: folder to create for its files.
    limits: of members and bytes.

  Returns:
    The original names of the members.

  Raises:
    HttpError: the archive is damaged, encrypted or too large, or a member is a link, a zip archive
      or has an unsafe path.
  """
  if _count_entries(archive) > limits.members:  # before `zipfile` reads a directory of millions
    raise _too_many(limits)
  try:
    with zipfile.ZipFile(archive) as opened:
      members = [m for m in opened.infolist() if not m.orig_filename.endswith("/")]
      if len(members) > limits.members:
        raise _too_many(limits)
      for member in members:
        _check(member)
      size = sum(member.file_size for member in members)
      if size > limits.unpacked:
        raise HttpError(413, "body", f"unpacks to {size} bytes; the limit is {limits.unpacked}",
                        "send a single series")
      files = [m for m in members if not _added_by_system(m.filename)]
      if not files:
        raise HttpError(422, "body", "is a zip archive without files", ZIP_AGAIN)
      folder.mkdir()
      for number, member in enumerate(files):
        name = MEMBER.format(number) + _suffix(member.filename)
        _write(opened, member, folder / name)
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError,
          OverflowError) as error:
    raise _damaged() from error
  except OSError as error:
    if error.errno != errno.EINVAL:  # EINVAL: a negative offset in the archive; else the disk
      raise
    raise _damaged() from error
  return [member.filename for member in files]


def _count_entries(archive: Path) -> int:
  """Returns an upper bound for the number of members, from one pass over the bytes."""
  count, tail = 0, b""
  with archive.open("rb") as stream:
    while block := stream.read(BLOCK):
      block = tail + block
      count += block.count(ENTRY_SIGNATURE)
      tail = block[-(len(ENTRY_SIGNATURE) - 1):]
  return count


def _check(member: zipfile.ZipInfo) -> None:
  """Raises HttpError for a member that is unsafe or cannot be unpacked."""
  name = member.orig_filename
  parts = name.replace("\\", "/").split("/")
  quoted = repr(name[-MAX_NAME:])
  if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in name:
    raise HttpError(422, "body", f"zip member {quoted} has an unsafe path", ZIP_AGAIN)
  kind = stat.S_IFMT(member.external_attr >> 16)
  if kind not in (0, stat.S_IFREG):
    raise HttpError(422, "body", f"zip member {quoted} is a link or device", ZIP_AGAIN)
  if member.flag_bits & 1:
    raise HttpError(422, "body", "is an encrypted zip archive", "send it without a password")
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise HttpError(422, "body", "is a zip archive with the unsupported compression method "
                    f"{member.compress_type}", ZIP_AGAIN)


def _added_by_system(name: str) -> bool:
  parts = name.split("/")
  return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1] == "Thumbs.db"


def _suffix(name: str) -> str:
  path = PurePosixPath(name.replace("\\", "/"))
  if re.fullmatch(r"\.[A-Za-z]{1,8}", path.suffix):
    return path.suffix.lower()
  return "" if re.search(r"\d", path.name) else ".other"


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
  """Unpacks a member; `zipfile` raises if it is larger than its directory entry says."""
  with opened.open(member) as stream, path.open("xb") as file:
    block = stream.read(BLOCK)
    if block.startswith(signature.ZIP):
      raise HttpError(422, "body", f"zip member {member.filename[-MAX_NAME:]!r} is a zip archive",
                      ZIP_AGAIN)
    while block:
      file.write(block)
      block = stream.read(BLOCK)


def _damaged() -> HttpError:
  return HttpError(422, "body", "is a damaged or unsupported zip archive", ZIP_AGAIN)


def _too_many(limits: Limits) -> HttpError:
  return HttpError(413, "body", f"is a zip archive of more than {limits.members} files",
                   "send a single series")
