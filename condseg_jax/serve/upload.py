"""The body of a request onto the disk, as it is or out of its form, within size and time."""

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
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import Volume
from condseg_jax.plan import Plan
from condseg_jax.resample import resampled_geometry
from condseg_jax.serve import archive
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import refused

MAX_BOUNDARY = 70  # RFC 2046, 5.1.1
DRAIN_SECONDS = 5.0
RAW = "send the file as the body itself, e.g. with curl --data-binary @FILE"


class Disconnected(Exception):
  """The sender has gone."""


class Incoming:
  """The body of one request while it comes.

  Attributes:
    ended: whether all of it has come.
  """

  def __init__(self, receive: Callable, headers: Mapping[str, str], limits: Limits):
    self._receive, self._headers, self._limits = receive, headers, limits
    # Whether its sender waits for a word before it begins.
    self._held = headers.get("expect", "").lower() == "100-continue"
    self.ended = False

  async def save(self, path: Path) -> int:
    """Writes the body, or the file in its form, and returns its size.

    Raises:
      HttpError: too large, too slow, empty, encoded, or a form without a file.
      Disconnected: the sender has gone.
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
      raise HttpError(400, "body", "is empty (0 bytes)", RAW)
    return size

  async def drain(self) -> None:
    """Takes the rest of a body that nobody wants, for a while.

    Were the connection closed under a sender that still sends, it might never read its answer.
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
      raise HttpError(415, "body", f"has the content encoding {encoding[:40]!r}",
                    "send the file as it is; .nii.gz needs no Content-Encoding")

  def _too_large(self) -> HttpError:
    return HttpError(413, "body", f"is larger than {self._limits.body / (1 << 20):g} MiB",
                   "compress it as .nii.gz or zip, cut the volume, or ask for a higher limit")

  async def _chunks(self) -> AsyncIterator[bytes]:
    start, size, self._held = time.monotonic(), 0, False
    while not self.ended:
      deadline = start + self._limits.transfer_seconds(size)
      try:
        async with asyncio.timeout(deadline - time.monotonic()):
          message = await self._receive()
      except TimeoutError:
        raise HttpError(408, "body", f"comes too slowly: {size} bytes so far",
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
  """The one file in multipart/form-data, handed on while it comes; nothing else may be there.

  Args:
    boundary: of the header.
    write: takes the bytes of the file.
  """

  def __init__(self, boundary: bytes, write: Callable[[bytes], object]):
    if not 0 < len(boundary) <= MAX_BOUNDARY:
      raise _no_form("has no boundary of 1 to 70 bytes in its Content-Type")
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
    """Takes the next bytes of the body."""
    try:
      self._parser.write(data)
    except FormParserError as error:
      raise _no_form(f"is no multipart/form-data ({error})") from error

  def end(self) -> None:
    """Raises a refusal where the form is incomplete."""
    if not self._ended:
      raise _no_form("is a form that ends too early")
    if not self._files:
      raise _no_form("is a form without a file")

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
      name = options.get(b"name", b"").decode("latin-1")[:40]
      raise HttpError(400, f"form field {name!r}", "is no file", "give parameters in the query of "
                    "the address, e.g. /predict?classes=…")
    self._files += 1
    if self._files > 1:
      raise _no_form("is a form with several files")

  def _end(self) -> None:
    self._ended = True


def _no_form(reason: str) -> HttpError:
  return HttpError(400, "body", reason, f"send a form with one file, or {RAW}")


# --- A body on the disk to a volume: what it is follows from its first bytes, never from a name.
MAX_VOXEL_BYTES = 8


def read_body(folder: Path, series: str, plan: Plan, limits: Limits) -> tuple[Volume, str]:
  """Reads the volume of a request.

  Args:
    folder: of the request; holds the file `BODY`, and afterwards what it was unpacked to.
    series: SeriesInstanceUID, where a zip holds several.
    plan: of the network, at whose spacing the volume must be of a bearable size, too.
    limits: of size.

  Returns:
    The volume, and what made it as DICOM calls it ("" where the body does not say).

  Raises:
    HttpError: whatever is wrong with it.
  """
  names: list[str] = []
  try:
    path = _named(folder)
    if path.name == BODY:
      path = folder / "series"
      names = archive.unpack(folder / BODY, path, limits)
    _check_size(files.read_header(path, series), plan, limits)
    return files.read_volume(path, series), files.modality(path, series)
  except InputError as error:
    if error.reason == "holds no DICOM image":
      raise HttpError(422, "body", "is a zip without a DICOM image", "send the folder of a DICOM "
                    "series as a zip, and NIfTI as it is") from error
    raise refused(error, 422, folder, names) from error
  finally:
    dicom.clear_header_cache()


def _named(folder: Path) -> Path:
  """Gives the body the name that the readers know its format by; a zip keeps `BODY`."""
  path = folder / BODY
  with path.open("rb") as stream:
    head = stream.read(348)
  if head.startswith((archive.SIGNATURE, b"PK\x05\x06")):
    return path
  if head.startswith(b"\x1f\x8b"):
    return path.rename(folder / "image.nii.gz")
  if head[344:346] in (b"n+", b"ni") or head[4:6] == b"n+":
    return path.rename(folder / "image.nii")
  raise HttpError(415, "body", "is neither NIfTI (.nii, .nii.gz) nor a zip",
                "send a NIfTI file, or the folder of a DICOM series as a zip")


def _check_size(header, plan: Plan, limits: Limits) -> None:
  grid = resampled_geometry(canonical_geometry(header.geometry), plan.spacing)
  for shape, where in ((header.geometry.shape, ""), (grid.shape, " at the network's spacing")):
    if math.prod(shape) > limits.voxels:
      told = " x ".join(map(str, shape))
      raise HttpError(413, "body", f"has {told} voxels{where}, more than {limits.voxels}",
                    "cut or resample the volume, and check the spacing in its header")
  if header.peak_bytes > 2 * MAX_VOXEL_BYTES * limits.voxels:
    raise HttpError(413, "body", "takes too much memory to read", "store it with 2 bytes a voxel")
