"""A zip archive that is what it says: every member has its SHA-256 in a manifest.

Members are stored, not compressed. Weights hardly compress; the bytes depend on no version of zlib,
so that equal members give equal archives; and no archive holds more than its own size. Nothing is
ever unpacked to the disk.
"""

from collections.abc import Mapping
import hashlib
import io
import json
import re
import struct
import zipfile

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.system.atomic import replacing

FORMAT, VERSION = "condseg_jax model", 2
READABLE = (1, 2)  # 1: settings under their former names (see `config.RENAMED`)
LIMIT = 2**31 - 1  # bytes: beyond it a zip archive needs another layout, and ONNX too
MANIFEST = "manifest.json"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can name


def write_archive(path, members: Mapping[str, bytes]) -> str:
  """Writes an archive, whole or not at all.

  Args:
    path: of the file, local or in a bucket.
    members: name → content.

  Returns:
    SHA-256 of the archive; equal members give equal archives.

  Raises:
    InputError: it is too large, or cannot be written.
  """
  digests = {name: _digest(members[name]) for name in sorted(members)}
  manifest = json.dumps({"format": FORMAT, "version": VERSION, "sha256": digests}, indent=1)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
    for name in (MANIFEST, *digests):
      entry = zipfile.ZipInfo(name, _DATE)
      entry.create_system, entry.external_attr = 3, 0o644 << 16  # on every system as on Unix
      archive.writestr(entry, manifest.encode() if name == MANIFEST else members[name])
  content = buffer.getvalue()
  if len(content) > LIMIT:
    raise InputError(path, f"would have {len(content)} bytes, an archive holds {LIMIT}",
                     "train a smaller network")
  with replacing(path) as temporary:
    temporary.write_bytes(content)
  return _digest(content)


def read_archive(path) -> dict[str, bytes]:
  """The members of an archive, checked against its manifest.

  Raises:
    InputError: it is not there, no archive of this format, damaged or tampered with.
  """
  path = epath.Path(path)
  try:
    size = path.stat().length
    content = b"" if size > LIMIT else path.read_bytes()
  except OSError as error:
    raise InputError(path, f"cannot be read: {error.strerror or error}", "check the path"
                     ) from error
  if size > LIMIT:
    raise _foreign(path, f"{size} bytes are more than one can have")
  if not content.startswith(b"PK"):
    raise _foreign(path, "not a zip archive")
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return _members(path, archive, size)
  # All that zipfile and json raise where the bytes are not as they expect.
  except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, struct.error,
          KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise damaged(path, str(error).strip() or type(error).__name__) from error


def damaged(path, reason: str) -> InputError:
  """The error for an archive that does not hold what it should."""
  return InputError(path, f"is damaged ({' '.join(reason.split())[:160]})",
                    "get the model anew and compare its SHA-256")


def _members(path, archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
  entries = archive.infolist()
  names = [entry.filename for entry in entries]
  if MANIFEST not in names:
    raise _foreign(path, f"holds no {MANIFEST}")
  for entry in entries:
    if not all(map(_PART.fullmatch, entry.filename.split("/"))):
      raise damaged(path, f"member name {entry.filename[:80]!r}")
    if entry.compress_type != zipfile.ZIP_STORED:
      raise damaged(path, f"{entry.filename} is compressed")
  if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > size:
    raise damaged(path, "members overlap")
  manifest = json.loads(archive.read(MANIFEST))
  if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
    raise _foreign(path, f"its {MANIFEST} is of something else")
  if manifest["version"] not in READABLE:
    raise InputError(path, f"is of version {manifest['version']}, known are {READABLE}",
                     "install the condseg_jax that wrote it, or a newer one")
  digests = dict(manifest["sha256"])
  for name in sorted({MANIFEST, *digests} ^ set(names)):
    raise damaged(path, f"{name} is {'not in the manifest' if name in names else 'missing'}")
  members = {name: archive.read(name) for name in digests}
  for name, digest in digests.items():
    if _digest(members[name]) != digest:
      raise damaged(path, f"{name} is not what the manifest says")
  return members


def _foreign(path, reason: str) -> InputError:
  return InputError(path, f"is not a model bundle ({reason})", "make one with condseg-export")


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
