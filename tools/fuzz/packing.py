"""Ways into what is packed, and out again with right checksums, digests and lengths."""

from collections.abc import Callable
from collections.abc import Sequence
import gzip
import hashlib
import io
import json
import re
import struct
import warnings
import zipfile
import zlib

from condseg_jax.model_io import archive

# What reading content raises that earlier operations have damaged.
BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError, IndexError, ValueError,
          TypeError, AttributeError, NotImplementedError, RuntimeError, OverflowError, struct.error)


class Impossible(Exception):
  """An operation does not apply to this content, for example after other operations."""


def inside(content: bytes, through: Sequence[str]) -> bytes:
  """Returns what lies behind some views."""
  found = [b""]

  def look(inner: bytes) -> bytes:
    found[0] = inner
    return inner
  changed(content, through, look)
  return found[0]


def changed(content: bytes, through: Sequence[str], change: Callable[[bytes], bytes]) -> bytes:
  """Returns content with what lies behind some views changed."""
  if not through:
    return change(content)
  view, _, member = through[0].partition("/")
  further = lambda inner: changed(inner, through[1:], change)
  try:
    return VIEWS[view](content, member, further)
  # What earlier operations left behind may not be readable any more.
  except BROKEN as error:
    raise Impossible(view) from error


def _in_gzip(content: bytes, _member: str, change: Callable[[bytes], bytes]) -> bytes:
  return gzip.compress(change(gzip.decompress(content)), mtime=0)


def _in_packed(content: bytes, _member: str, change: Callable[[bytes], bytes]) -> bytes:
  """The compressed voxels behind the header of a MetaImage or NRRD file."""
  meta = b"ElementDataFile" in content[:4096]
  end = (content.index(b"\n", content.index(b"ElementDataFile")) + 1 if meta
         else content.index(b"\n\n") + 2)
  voxels = change(zlib.decompress(content[end:], zlib.MAX_WBITS | 32))
  packed = zlib.compress(voxels) if meta else gzip.compress(voxels, mtime=0)
  head = re.sub(rb"(?m)^CompressedDataSize = \d+", b"CompressedDataSize = %d" % len(packed),
                content[:end])
  return head + packed


def _in_zip(content: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
  members = zip_content(content)
  index = next((i for i, (info, _) in enumerate(members) if info.filename == member), None)
  if index is None:
    raise Impossible(member)
  info, inner = members[index]
  members[index] = info, change(inner)
  return zipped(members)


def _in_bundle(content: bytes, member: str, change: Callable[[bytes], bytes]) -> bytes:
  """A member of a model bundle, whose manifest gets the digest of the changed member."""
  members = {info.filename: inner for info, inner in zip_content(content)}
  if member not in members:
    raise Impossible(member)
  members[member] = change(members[member])
  if member != archive.MANIFEST:
    manifest = json.loads(members[archive.MANIFEST])
    manifest["sha256"][member] = hashlib.sha256(members[member]).hexdigest()
    members[archive.MANIFEST] = json.dumps(manifest, indent=1).encode()
  return zipped([(zipfile.ZipInfo(name), inner) for name, inner in members.items()])


def _in_body(content: bytes, _member: str, change: Callable[[bytes], bytes]) -> bytes:
  """The body of an HTTP request, whose Content-Length is set to that of the changed body."""
  head, blank, body = content.partition(b"\r\n\r\n")
  if not blank:
    raise Impossible("body")
  body = change(body)
  head = re.sub(rb"(?im)^(content-length: )\d+", rb"\g<1>%d" % len(body), head)
  return head + blank + body


def _in_form(content: bytes, number: str, change: Callable[[bytes], bytes]) -> bytes:
  """The content of a part of multipart/form-data, by its number."""
  boundary = content.partition(b"\r\n")[0]
  parts = content.split(boundary)
  head, blank, inner = parts[1 + int(number)].partition(b"\r\n\r\n")
  if not blank or not inner.endswith(b"\r\n"):
    raise Impossible("form")
  parts[1 + int(number)] = head + blank + change(inner[:-2]) + b"\r\n"
  return boundary.join(parts)


VIEWS = {"gzip": _in_gzip, "packed": _in_packed, "zip": _in_zip, "bundle": _in_bundle,
         "body": _in_body, "form": _in_form}


def zip_content(content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
  """Returns the members of a zip archive."""
  with zipfile.ZipFile(io.BytesIO(content)) as opened:
    return [(info, opened.read(info)) for info in opened.infolist()]


def zipped(members: Sequence[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
  """Returns a zip archive of members."""
  stream = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as opened:
    warnings.simplefilter("ignore")  # duplicate names are intended
    for info, content in members:
      new = zipfile.ZipInfo(info.filename, (1980, 1, 1, 0, 0, 0))
      new.compress_type, new.external_attr = info.compress_type, info.external_attr
      new.filename = info.filename  # `ZipInfo` would cut it at a zero byte
      opened.writestr(new, content)
  return stream.getvalue()


def member_names(content: bytes) -> list[str]:
  """Returns the names of the members of a zip archive; none if it cannot be read."""
  try:
    with opened(content) as archive_file:
      return archive_file.namelist()
  except Impossible:
    return []


def member_digests(content: bytes) -> dict[str, str] | None:
  """Returns name → digest of the members of a zip archive; None if it cannot be read."""
  try:
    return {info.filename: hashlib.sha256(inner).hexdigest()
            for info, inner in zip_content(content)}
  except BROKEN:
    return None


def opened(content: bytes) -> zipfile.ZipFile:
  """Opens a zip archive."""
  try:
    return zipfile.ZipFile(io.BytesIO(content))
  except BROKEN as error:
    raise Impossible("zip") from error
