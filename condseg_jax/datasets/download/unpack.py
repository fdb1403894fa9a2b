"""Unpacks untrusted archives: all members are checked before the first is written."""

from collections.abc import Sequence
import errno
import lzma
import os
from pathlib import Path
from pathlib import PurePosixPath
import shutil
import struct
import tarfile
import tempfile
from typing import IO
import zipfile
import zlib

from condseg_jax.errors import InputError

TAR = (".tar", ".tar.gz", ".tgz")
BLOCK = 1 << 20
MAX_RATIO = 1100  # deflate cannot exceed 1032:1
MAX_NAME = 255  # bytes of the name of a file, in all common file systems
MAX_PATH = 1024  # bytes of a path in an archive; file systems allow four times as much in total
AGAIN = "do not use this archive; download it from the publisher"


def unpack(archive: Path, target: Path, *, folder: str = "", limit: int) -> None:
  """Unpacks an archive into a new folder, atomically.

  Args:
    archive: .tar, .tar.gz, .tgz or .zip.
    target: the folder to create.
    folder: folder in the archive that becomes `target`; "" for the whole archive, or its only top
      folder.
    limit: maximal unpacked size in bytes.

  Raises:
    InputError: the target exists; a member has a path outside of the archive or one that is too
      long, is a link or a device, occurs twice, is both file and folder, or is too large; the
      archive is damaged. No files are left behind.
  """
  if target.exists():
    raise InputError(target, "already exists", "remove it, or choose another folder")
  target.parent.mkdir(parents=True, exist_ok=True)
  # In the same folder as the target, so that the last step is a rename, and of a unique name.
  temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
  try:
    try:
      if archive.name.lower().endswith(TAR):
        _unpack_tar(archive, temporary, limit)
      elif archive.name.lower().endswith(".zip"):
        _unpack_zip(archive, temporary, limit)
      else:
        raise InputError(archive, "unknown kind of archive",
                         f"choose from: {', '.join(TAR)}, .zip")
    except InputError:
      raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError,
            OverflowError, NotImplementedError, struct.error) as error:
      raise _damaged(archive, error) from error
    except OSError as error:
      # gzip and bz2 give no number; a negative offset is EINVAL; other numbers are of the disk.
      if error.errno not in (None, errno.EINVAL):
        raise
      raise _damaged(archive, error.strerror or error) from error
    top = list(temporary.iterdir())
    alone = not folder and len(top) == 1 and top[0].is_dir()
    source = top[0] if alone else temporary / folder
    if not source.is_dir():
      raise InputError(archive, f"contains no folder {folder}", AGAIN)
    source.chmod(0o755)
    source.rename(target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path, limit: int) -> None:
  with tarfile.open(archive, "r:*") as stream:
    members = stream.getmembers()
    _check_end(archive, stream, limit)
    for member in members:
      if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
        raise InputError(archive, f"member {member.name!r} is {kind}", AGAIN)
    files = [(m.name, m.size) for m in members if m.isreg()]
    _check(archive, [m.name for m in members], files, limit, folder)
    for member in members:
      if member.isreg():
        _copy(stream.extractfile(member), folder, member.name)


def _check_end(archive: Path, stream: tarfile.TarFile, limit: int) -> None:
  """Checks that nothing but zeros follows the last member, and reads them all.

  tarfile takes a damaged header for the end of the archive, and does not read as far as the
  checksum of gzip. No more is read than the limit and the ratio of compression allow.
  """
  source = stream.fileobj
  assert source is not None
  source.seek(stream.offset)  # of the block that ended the list of members
  size, most = 0, min(limit, MAX_RATIO * archive.stat().st_size)
  while block := source.read(BLOCK):
    size += len(block)
    if any(block):
      raise _damaged(archive, "the header of a member is damaged")
    if size > most:
      raise InputError(archive, f"has more than {most} bytes of zeros at its end", AGAIN)
  if size < 2 * tarfile.BLOCKSIZE:
    raise _damaged(archive, "it has no end")


def _unpack_zip(archive: Path, folder: Path, limit: int) -> None:
  with zipfile.ZipFile(archive) as stream:
    members = stream.infolist()
    for member in members:
      kind = member.external_attr >> 28  # Unix file type
      if kind not in (0, 0o4, 0o10):
        raise InputError(archive, f"member {member.filename!r} is a link or device", AGAIN)
    # The names as they are stored: zipfile cuts them at a NUL.
    files = [m for m in members if not m.orig_filename.endswith("/")]
    _check(archive, [m.orig_filename for m in members],
           [(m.orig_filename, m.file_size) for m in files], limit, folder)
    for member in files:
      try:
        # zipfile reads at most the size in the directory; a longer member fails its checksum.
        _copy(stream.open(member), folder, member.filename)
      except RuntimeError as error:  # encrypted, or an unknown method
        raise InputError(archive, f"member {member.filename!r}: {error}", AGAIN) from error


def _copy(source: IO[bytes], folder: Path, name: str) -> None:
  """Writes one member, whose name was checked; its owner and permissions are ignored."""
  with source:
    if not _is_metadata(name):
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      with path.open("xb") as target:
        shutil.copyfileobj(source, target, BLOCK)


def _check(archive: Path, names: Sequence[str], files: Sequence[tuple[str, int]], limit: int,
           folder: Path) -> None:
  """Checks names and sizes of the members.

  Args:
    archive: the archive.
    names: names of all members.
    files: name and size in bytes of each member that is a file.
    limit: maximal sum of the sizes.
    folder: folder that they are unpacked to.
  """
  paths = set()
  for name in names:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
      raise InputError(archive, f"member {name!r} has a path outside of the archive", AGAIN)
    if path in paths and path.parts:
      raise InputError(archive, f"member {name!r} occurs twice", AGAIN)
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > MAX_NAME or len(os.fsencode(path)) > MAX_PATH:
      raise InputError(archive, f"member '{name[:40]}…' has too long a name", AGAIN)
    paths.add(path)
  folders = {PurePosixPath(), *(parent for path in paths for parent in path.parents)}
  for name, _ in files:
    if PurePosixPath(name.replace("\\", "/")) in folders:
      raise InputError(archive, f"member {name!r} is both a file and a folder", AGAIN)
  size = sum(size for _, size in files)
  if size > limit or size > MAX_RATIO * max(archive.stat().st_size, 1):
    raise InputError(archive, f"would unpack to {size / 1e9:.1f} GB", AGAIN)
  free = shutil.disk_usage(folder).free
  if size > free:
    raise InputError(folder.parent, f"has {free / 1e9:.1f} GB of free space, but the dataset needs "
                     f"{size / 1e9:.1f} GB", "free some space, or choose another folder")


def _damaged(archive: Path, reason: object) -> InputError:
  return InputError(archive, f"is damaged ({' '.join(str(reason).split())})", "download it again")


def _is_metadata(name: str) -> bool:
  """Returns whether a member is metadata added by macOS."""
  parts = PurePosixPath(name).parts
  return "__MACOSX" in parts or os.path.basename(name).startswith("._")
