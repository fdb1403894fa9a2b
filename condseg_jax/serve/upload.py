"""Uploads: receives a request body within size and time limits, and reads it as a volume.

The body is the file itself or the only file of a form. Its format is detected from its first bytes,
never from a name.
"""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Mapping
import math
from pathlib import Path
import time

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from python_multipart.multipart import parse_options_header

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats import files
from condseg_jax.formats.voxels import Header
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import Volume
from condseg_jax.plan import Plan
from condseg_jax.resample import resampled_geometry
from condseg_jax.serve import archive
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import MAX_VALUE
from condseg_jax.serve.request import to_http_error

DRAIN_SECONDS = 5.0
MAX_BOUNDARY = 70  # bytes, RFC 2046, 5.1.1
MAX_VOXEL_BYTES = 8
HEADER_BYTES = 348  # of NIfTI-1

SEND_RAW = "send the file as the request body, e.g. with curl --data-binary @FILE"


class Disconnected(Exception):
  """The sender has closed the connection."""


class Incoming:
  """The body of one request during its transfer.

  Attributes:
    ended: whether the body has been received completely.
  """

  def __init__(self, receive: Callable, headers: Mapping[str, str], limits: Limits):
    self._receive, self._headers, self._limits = receive, headers, limits
    # Whether the sender waits for a "100 Continue" response before it sends the body.
    self._held = headers.get("expect", "").lower() == "100-continue"
    self.ended = False

  async def save(self, path: Path) -> int:
    """Writes the body, or the file in its form, and returns its size in bytes.

    Args:
      path: file to write.

    Raises:
      HttpError: the body is too large, too slow, empty or encoded, or is a form without a file.
      Disconnected: the sender has closed the connection.
    """
    self._check_headers()
    kind, options = parse_options_header(self._headers.get("content-type", ""))
    size = 0
    with path.open("wb") as file:
      if kind == b"multipart/form-data":
        form = FormFile(options.get(b"boundary", b""), file.write)
        async for chunk in self._chunks():
          form.feed(chunk)
        form.end()
      else:
        async for chunk in self._chunks():
          file.write(chunk)
      size = file.tell()
    if not size:
      raise HttpError(400, "body", "is empty (0 bytes)", SEND_RAW)
    return size

  async def drain(self) -> None:
    """Receives and discards the rest of the body for at most `DRAIN_SECONDS`.

    If the connection were closed during the transfer, the sender might never read the response.
    """
    if self._held:
      return
    try:
      async with asyncio.timeout(DRAIN_SECONDS):
        while not self.ended:
          message = await self._receive()
          self.ended = message["type"] == "http.disconnect" or not message.get("more_body")
    except TimeoutError:
      pass

  def _check_headers(self) -> None:
    length = self._headers.get("content-length", "")
    if length.isdecimal() and int(length) > self._limits.body:
      raise self._too_large()
    encoding = self._headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
      raise HttpError(415, "body", f"has the unsupported Content-Encoding {encoding[:MAX_VALUE]!r}",
                      "send the file as it is; .nii.gz needs no Content-Encoding")

  def _too_large(self) -> HttpError:
    return HttpError(413, "body", f"is larger than {self._limits.body / (1 << 20):g} MiB",
                     "compress it as .nii.gz or zip, crop the volume, or ask for a higher limit")

  async def _chunks(self) -> AsyncIterator[bytes]:
    start, size, self._held = time.monotonic(), 0, False
    while not self.ended:
      deadline = start + self._limits.transfer_seconds(size)
      try:
        async with asyncio.timeout(deadline - time.monotonic()):
          message = await self._receive()
      except TimeoutError:
        raise HttpError(408, "body", f"arrives too slowly: {size} bytes so far",
                        "send it again over a faster connection") from None
      if message["type"] == "http.disconnect":
        raise Disconnected
      chunk = message.get("body", b"")
      size += len(chunk)
      if size > self._limits.body:
        raise self._too_large()
      self.ended = not message.get("more_body", False)
      yield chunk


class FormFile:
  """Extracts the only file of multipart/form-data while it is received.

  Args:
    boundary: boundary of the Content-Type header.
    write: receives the bytes of the file.
  """

  def __init__(self, boundary: bytes, write: Callable[[bytes], object]):
    if not 0 < len(boundary) <= MAX_BOUNDARY:
      raise _form_error("has no boundary of 1 to 70 bytes in its Content-Type")
    self._write, self._files, self._ended = write, 0, False
    self._name, self._value, self._headers = b"", b"", {}
    self._parser = MultipartParser(boundary, {
        "on_part_begin": self._headers.clear,
        "on_header_field": self._header_name,
        "on_header_value": self._header_value,
        "on_header_end": self._header_end,
        "on_headers_finished": self._begin,
        "on_part_data": lambda data, start, end: self._write(data[start:end]),
        "on_end": self._end})

  def feed(self, data: bytes) -> None:
    """Parses the next bytes of the body.

    Raises:
      HttpError: invalid form, several files, or other fields.
    """
    try:
      self._parser.write(data)
    except FormParserError as error:
      raise _form_error(f"is not valid multipart/form-data ({error})") from error

  def end(self) -> None:
    """Raises HttpError if the form is incomplete or has no file."""
    if not self._ended:
      raise _form_error("is a truncated form")
    if not self._files:
      raise _form_error("is a form without a file")

  def _header_name(self, data: bytes, start: int, end: int) -> None:
    self._name += data[start:end]

  def _header_value(self, data: bytes, start: int, end: int) -> None:
    self._value += data[start:end]

  def _header_end(self) -> None:
    self._headers[self._name.lower()] = self._value
    self._name = self._value = b""

  def _begin(self) -> None:
    _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
    if b"filename" not in options:
      name = options.get(b"name", b"").decode("latin-1")[:MAX_VALUE]
      raise HttpError(400, f"form field {name!r}", "is not a file",
                      "give parameters in the query string, e.g. /predict?classes=…")
    self._files += 1
    if self._files > 1:
      raise _form_error("is a form with several files")

  def _end(self) -> None:
    self._ended = True


def _form_error(reason: str) -> HttpError:
  return HttpError(400, "body", reason, f"send a form with a single file, or {SEND_RAW}")


def read_body(folder: Path, series: str, plan: Plan, limits: Limits) -> tuple[Volume, str]:
  """Reads the volume of a request.

  Args:
    folder: folder of the request with the file `BODY`; a zip archive is unpacked into it.
    series: SeriesInstanceUID to select from a zip archive with several series, or "".
    plan: of the network; its spacing limits the size of the volume.
    limits: of size.

  Returns:
    The volume, and its DICOM modality ("" if unknown).

  Raises:
    HttpError: the body is not a valid volume, or is too large.
  """
  names: list[str] = []
  try:
    path = _rename_by_format(folder)
    if path.name == BODY:
      path = folder / "series"
      names = archive.unpack(folder / BODY, path, limits)
    _check_size(files.read_header(path, series), plan, limits)
    return files.read_volume(path, series), files.modality(path, series)
  except InputError as error:
    if "no DICOM image" in error.reason:  # its cure names a folder, but the sender sent a zip
      raise HttpError(422, "body", "is a zip archive without DICOM images", "zip the folder of a "
                      "DICOM series; send NIfTI as it is") from error
    raise to_http_error(error, 422, folder, names) from error
  finally:
    dicom.forget()


def _rename_by_format(folder: Path) -> Path:
  """Renames a NIfTI body so that the readers recognise it; a zip archive keeps the name `BODY`."""
  path = folder / BODY
  with path.open("rb") as stream:
    head = stream.read(HEADER_BYTES)
  if head.startswith((archive.SIGNATURE, archive.EMPTY_SIGNATURE)):
    return path
  if head.startswith(b"\x1f\x8b"):
    return path.rename(folder / "image.nii.gz")
  if head[344:346] in (b"n+", b"ni") or head[4:6] == b"n+":
    return path.rename(folder / "image.nii")
  raise HttpError(415, "body", "is neither NIfTI (.nii, .nii.gz) nor a zip archive",
                  "send a NIfTI file, or the folder of a DICOM series as a zip archive")


def _check_size(header: Header, plan: Plan, limits: Limits) -> None:
  grid = resampled_geometry(canonical_geometry(header.geometry), plan.spacing)
  for shape, where in ((header.geometry.shape, ""), (grid.shape, " at the network's spacing")):
    if math.prod(shape) > limits.voxels:
      size = " x ".join(map(str, shape))
      raise HttpError(413, "body", f"has {size} voxels{where}; the limit is {limits.voxels}",
                      "crop or resample the volume, and check the spacing in its header")
  if header.peak_bytes > 2 * MAX_VOXEL_BYTES * limits.voxels:
    raise HttpError(413, "body", "takes too much memory to read", "store it with 2 bytes per voxel")
