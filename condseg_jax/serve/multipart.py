"""Writes multipart/form-data (RFC 7578), which browsers and clients of MONAI Label take apart."""

from collections.abc import Iterable
from pathlib import Path
import shutil
from typing import IO
from typing import NamedTuple
import uuid


class Part(NamedTuple):
  """A part of a form.

  Attributes:
    name: of the field.
    content: its bytes, or a stream of them.
    file: name of the file; "" for a field that is no file.
    media: media type; "" for none.
  """

  name: str
  content: bytes | IO[bytes]
  file: str = ""
  media: str = ""


def write_form(path: Path, parts: Iterable[Part]) -> str:
  """Writes a form and returns its media type."""
  boundary = uuid.uuid4().hex
  with path.open("wb") as stream:
    for part in parts:
      head = f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"'
      head += f'; filename="{part.file}"' if part.file else ""
      head += f"\r\nContent-Type: {part.media}" if part.media else ""
      stream.write(f"{head}\r\n\r\n".encode())
      if isinstance(part.content, bytes):
        stream.write(part.content)
      else:
        shutil.copyfileobj(part.content, stream)
      stream.write(b"\r\n")
    stream.write(f"--{boundary}--\r\n".encode())
  return f"multipart/form-data; boundary={boundary}"
