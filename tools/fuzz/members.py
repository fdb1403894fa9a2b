"""What an archive contains by its standard, read strictly and independently of the package.

As `content`, for zip and tar: names of members and digests of their bytes, or `Damaged`.
"""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
import zlib

from tools.fuzz.content import Damaged


def zip_members(content: bytes) -> list[tuple[str, str]]:
  """Reads a zip archive: names and digests, if directory and members agree on the names."""
  members = []
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
      for info in opened.infolist():
        size, = struct.unpack_from("<H", content, info.header_offset + 26)
        name = content[info.header_offset + 30:info.header_offset + 30 + size]
        if name != info.orig_filename.encode() or info.flag_bits & 1:
          raise Damaged("directory and member do not agree")
        if not info.is_dir():
          members.append((info.orig_filename, hashlib.sha256(opened.read(info)).hexdigest()))
  except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError,
          NotImplementedError, struct.error, KeyError, OverflowError) as error:
    raise Damaged("a member or the directory is damaged") from error
  return members


def tar_members(content: bytes, compressed: bool) -> list[tuple[str, str]]:
  """Reads a tar archive: names and digests. Headers have checksums; blocks of zeros end it."""
  if compressed:
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
      raise Damaged("its stream is damaged") from error
  members, place = [], 0
  while any(block := content[place:place + 512]):
    try:
      member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
      raise Damaged("the header of a member is damaged") from error
    data = content[place + 512:place + 512 + member.size]
    if not (member.isreg() or member.isdir()) or not 0 <= member.size == len(data):
      raise Damaged("a member is incomplete, or no file")
    if member.isreg():
      members.append((member.name, hashlib.sha256(data).hexdigest()))
    place += 512 + (member.size + 511) // 512 * 512
  if any(content[place:]) or len(content) - place < 1024:
    raise Damaged("it has no end")
  return members
