"""Receives a request body, raw or as the file of a form, within size and time limits."""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
from pathlib import Path
import time

from python_multipart.multipart import parse_options_header
from starlette.types import Message

from condseg_jax.serve.form import Form
from condseg_jax.serve.form import SEND_RAW
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import MAX_VALUE

DRAIN_SECONDS = 5.0
RETRY_SECONDS = 2


class Disconnected(Exception):
  """The sender has closed the connection."""


class Incoming:
  """The body of one request during its transfer.

  Attributes:
    ended: whether the body has been received completely.
    fields: text fields of its form, once it has been received.
  """

  def __init__(self, receive: Callable, headers: Mapping[str, str], limits: Limits):
    self._receive, self._headers, self._limits = receive, headers, limits
    # Whether the sender waits for a "100 Continue" response before it sends the body.
    self._held = headers.get("expect", "").lower() == "100-continue"
    self._start, self._size = time.monotonic(), 0
    self._timeout: asyncio.Timeout | None = None  # of the next chunk
    self.ended = False
    self.fields: Mapping[str, str] = {}

  async def save(self, path: Path, fields: Collection[str] = (), *, file: str = "",
                 optional: bool = False) -> int:
    """Writes the body, or the file in its form, and returns its size in bytes.

    Args:
      path: file to write.
      fields: text fields that a form may have.
      file: name of the field of the file in a form; "" for any.
      optional: whether the body may be empty, or a form without a file.

    Raises:
      HttpError: the body is too large, too slow, empty or encoded, or is a form without a file.
      Disconnected: the sender has closed the connection.
    """
    self._check_headers()
    kind, options = parse_options_header(self._headers.get("content-type", ""))
    size = 0
    with path.open("wb") as stream:
      if kind == b"multipart/form-data":
        form = Form(options.get(b"boundary", b""), stream.write, fields, file)
        async for chunk in self._chunks():
          form.feed(chunk)
        form.end(optional=optional)
        self.fields = form.fields
      else:
        async for chunk in self._chunks():
          stream.write(chunk)
      size = stream.tell()
    if not size and not optional:
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

  async def rest(self) -> Message:
    """Drains the body, as the `receive` of a response to it; see the ASGI specification."""
    await self.drain()
    return {"type": "http.disconnect"}

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
