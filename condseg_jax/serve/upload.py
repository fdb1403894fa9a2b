"""Receives a request body, raw or as the file of a form, within size and time limits."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
from pathlib import Path
import time

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from python_multipart.multipart import parse_options_header

from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import MAX_VALUE

DRAIN_SECONDS = 5.0
RETRY_SECONDS = 2
MAX_BOUNDARY = 70  # bytes, RFC 2046, 5.1.1

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
    self._start, self._size = time.monotonic(), 0
    self._timeout: asyncio.Timeout | None = None  # of the next chunk
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

  def rate(self) -> float:
    """Returns the average bytes per second; inf during the first `Limits.contended_seconds`."""
    seconds = time.monotonic() - self._start
    return self._size / seconds if seconds > self._limits.contended_seconds else math.inf

  def stop(self) -> None:
    """Lets `save` fail, as if the body were too slow."""
    if self._timeout is not None and not self._timeout.expired():
      self._timeout.reschedule(asyncio.get_running_loop().time())

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
    self._start, self._held = time.monotonic(), False
    while not self.ended:
      deadline = self._start + self._limits.transfer_seconds(self._size)
      try:
        async with asyncio.timeout(deadline - time.monotonic()) as self._timeout:
          message = await self._receive()
      except TimeoutError:
        raise HttpError(408, "body", f"arrives too slowly: {self._size} bytes so far",
                        "send it again over a faster connection") from None
      if message["type"] == "http.disconnect":
        raise Disconnected
      chunk = message.get("body", b"")
      self._size += len(chunk)
      if self._size > self._limits.body:
        raise self._too_large()
      self.ended = not message.get("more_body", False)
      yield chunk


class Uploads:
  """The bodies that are being received: a bounded number.

  When all places are taken, the slowest body below the minimum rate gives its place to a new one.
  """

  def __init__(self, limits: Limits):
    self._limits = limits
    self._receiving: set[Incoming] = set()

  @contextlib.contextmanager
  def place(self, incoming: Incoming) -> Iterator[None]:
    """Occupies a place while a body is received.

    Raises:
      HttpError: all places are taken by bodies that are fast enough.
    """
    if len(self._receiving) >= self._limits.places:
      slowest = min(self._receiving, key=Incoming.rate)
      if slowest.rate() >= self._limits.bytes_per_second:
        raise HttpError(429, "service", f"is receiving {len(self._receiving)} other bodies",
                        "try again later", retry_after=RETRY_SECONDS)
      self._receiving.remove(slowest)
      slowest.stop()
    self._receiving.add(incoming)
    try:
      yield
    finally:
      self._receiving.discard(incoming)


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
