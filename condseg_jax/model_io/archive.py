"""A zip archive with a manifest of the SHA-256 of every member.

Members are stored uncompressed: weights hardly compress, the bytes do not depend on the version of
zlib, so that equal members give equal archives, and an archive cannot expand beyond its own size.
Nothing is ever unpacked to disk.
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

FORMAT, VERSION = "condseg_jax model", 4
# 1: former names of settings (see `former_settings`); 2: one network; 3: an ensemble;
# 4: calibrated
READABLE = (1, 2, 3, 4)
LIMIT = 2**31 - 1  # bytes; larger zip archives and ONNX files need another layout
MANIFEST = "manifest.json"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip archive can store


def write_archive(path, members: Mapping[str, bytes], version: int = VERSION) -> str:
  """Writes an archive atomically.

  Args:
    path: path of the file, local or in a bucket.
    members: name → content.
    version: the oldest format that holds them, so that older programs read what they can.

  Returns:
    SHA-256 of the archive; equal members give equal archives.

  Raises:
    InputError: the archive is too large or cannot be written.
  """
  digests = {name: _digest(members[name]) for name in sorted(members)}
  manifest = json.dumps({"format": FORMAT, "version": version, "sha256": digests}, indent=1)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
    for name in (MANIFEST, *digests):
      entry = zipfile.ZipInfo(name, _DATE)
      entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, on every system
      archive.writestr(entry, manifest.encode() if name == MANIFEST else members[name])
  content = buffer.getvalue()
  if len(content) > LIMIT:
    raise InputError(path, f"would have {len(content)} bytes, an archive holds {LIMIT}",
                     "train a smaller network")
  with replacing(path) as temporary:
    temporary.write_bytes(content)
  return _digest(content)


def read_archive(path) -> dict[str, bytes]:
  """Reads the members of an archive and checks them against its manifest.

  Raises:
    InputError: the file is missing, not an archive of this format, damaged or tampered with.
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
  # All exceptions that zipfile and json raise on malformed bytes.
  except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, struct.error,
          KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
    if isinstance(error, InputError):
      raise
    raise damaged(path, str(error).strip() or type(error).__name__) from error


def damaged(path, reason: str) -> InputError:
  """Returns the error for an archive with invalid content."""
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
