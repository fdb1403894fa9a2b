"""A zip of a DICOM series onto the disk, under names of our own, after a look at every member."""

import errno
from pathlib import Path
import stat
import zipfile
import zlib

from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import MAX_NAME
from condseg_jax.serve.request import MEMBER

SIGNATURE = b"PK\x03\x04"
# What begins every entry of a zip's directory.
ENTRY = b"PK\x01\x02"
BLOCK = 1 << 20
AGAIN = "zip the folder of the series again, its files alone"


def unpack(archive: Path, folder: Path, limits: Limits) -> list[str]:
  """Unpacks a zip.

  Folders inside and what systems add (hidden files, __MACOSX) are left out. The names in the zip
  are told, never used: member i becomes the file `MEMBER` i.

  Args:
    archive: the zip.
    folder: a new folder for its files.
    limits: of members and bytes.

  Returns:
    The members' names, in the order of their numbers.

  Raises:
    HttpError: damaged, encrypted or too large; members that are links, zips, or point outside.
  """
  if _count_entries(archive) > limits.members:  # before a directory of millions is built
    raise _too_many(limits)
  try:
    with zipfile.ZipFile(archive) as opened:
      members = [m for m in opened.infolist() if not m.is_dir()]
      if len(members) > limits.members:
        raise _too_many(limits)
      for member in members:
        _check(member)
      size = sum(member.file_size for member in members)
      if size > limits.unpacked:
        raise HttpError(413, "body", f"unpacks to {size} bytes, more than {limits.unpacked}",
                      "send one series alone")
      wanted = [m for m in members if not _added_by_system(m.filename)]
      if not wanted:
        raise HttpError(422, "body", "is a zip without files", AGAIN)
      folder.mkdir()
      for number, member in enumerate(wanted):
        _write(opened, member, folder / MEMBER.format(number))
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError,
          OverflowError) as error:
    raise HttpError(422, "body", "is a damaged or unusual zip", AGAIN) from error
  except OSError as error:
    if error.errno != errno.EINVAL:  # the disk's; this one is of an offset before the beginning
      raise
    raise HttpError(422, "body", "is a damaged or unusual zip", AGAIN) from error
  return [member.filename for member in wanted]


def _count_entries(archive: Path) -> int:
  """At least as many as the zip has members, at the price of one look at its bytes."""
  count, tail = 0, b""
  with archive.open("rb") as stream:
    while block := stream.read(BLOCK):
      block = tail + block
      count += block.count(ENTRY)
      tail = block[-(len(ENTRY) - 1):]
  return count


def _check(member: zipfile.ZipInfo) -> None:
  name = member.orig_filename
  parts = name.replace("\\", "/").split("/")
  told = repr(name[-MAX_NAME:])
  if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in name:
    raise HttpError(422, "body", f"is a zip whose member {told} points outside of it", AGAIN)
  kind = stat.S_IFMT(member.external_attr >> 16)
  if kind not in (0, stat.S_IFREG):
    raise HttpError(422, "body", f"is a zip whose member {told} is a link or device", AGAIN)
  if member.flag_bits & 1:
    raise HttpError(422, "body", "is an encrypted zip", "send it without a password")
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise HttpError(422, "body", f"is a zip of the unusual method {member.compress_type}", AGAIN)


def _added_by_system(name: str) -> bool:
  parts = name.split("/")
  return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1] == "Thumbs.db"


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
  """Unpacks a member; its stream ends at the size that the directory says, or raises."""
  with opened.open(member) as stream, path.open("xb") as file:
    block = stream.read(BLOCK)
    if block.startswith(SIGNATURE):
      raise HttpError(422, "body", f"is a zip with another in it, {member.filename[-MAX_NAME:]!r}",
                    AGAIN)
    while block:
      file.write(block)
      block = stream.read(BLOCK)


def _too_many(limits: Limits) -> HttpError:
  return HttpError(413, "body", f"is a zip of more than {limits.members} files",
                 "send one series alone")
