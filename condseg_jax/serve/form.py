"""Takes multipart/form-data apart while it is received: at most one file, and short text fields."""

from collections.abc import Callable
from collections.abc import Collection
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from python_multipart.multipart import parse_options_header

from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import MAX_VALUE

if TYPE_CHECKING:
  from python_multipart.multipart import MultipartCallbacks

MAX_BOUNDARY = 70  # bytes, RFC 2046, 5.1.1
MAX_FIELD = 1 << 16  # bytes of the value of a text field
SEND_RAW = "send the file as the request body, e.g. with curl --data-binary @FILE"


class Form:
  """A form during its transfer.

  Args:
    boundary: boundary of the Content-Type header.
    write: receives the bytes of the file.
    names: of the text fields that the form may have.
    file: name of the field of the file; "" for any.

  Attributes:
    fields: name → value of the text fields.
  """

  def __init__(self, boundary: bytes, write: Callable[[bytes], object],
               names: Collection[str] = (), file: str = ""):
    if not 0 < len(boundary) <= MAX_BOUNDARY:
      raise _form_error("has no boundary of 1 to 70 bytes in its Content-Type")
    self._write, self._names, self._file = write, names, file
    self._files, self._ended = 0, False
    self._name, self._value = b"", b""
    self._headers: dict[bytes, bytes] = {}
    self._field: str | None = None  # the text field that is being received
    self._text: dict[str, bytearray] = {}
    callbacks: MultipartCallbacks = {
        "on_part_begin": self._headers.clear,
        "on_header_field": self._header_name,
        "on_header_value": self._header_value,
        "on_header_end": self._header_end,
        "on_headers_finished": self._begin,
        "on_part_data": self._data,
        "on_end": self._end}
    self._parser = MultipartParser(boundary, callbacks)

  @property
  def fields(self) -> dict[str, str]:
    """The text fields; bytes that are not UTF-8 are replaced."""
    return {name: value.decode(errors="replace") for name, value in self._text.items()}

  def feed(self, data: bytes) -> None:
    """Parses the next bytes of the body.

    Raises:
      HttpError: invalid form, several files, or other fields.
    """
    try:
      self._parser.write(data)
    except FormParserError as error:
      raise _form_error(f"is not valid multipart/form-data ({error})") from error

  def end(self, *, optional: bool = False) -> None:
    """Raises HttpError if the form is incomplete, or has no file and it is not `optional`."""
    if not self._ended:
      raise _form_error("is a truncated form")
    if not self._files and not optional:
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
    name = options.get(b"name", b"").decode("latin-1")
    if b"filename" in options:
      if self._file and name != self._file:
        raise HttpError(400, f"form field {name[:MAX_VALUE]!r}", "is not used here",
                        f"send a single file, in the field {self._file!r}")
      self._field = None
      self._files += 1
      if self._files > 1:
        raise _form_error("is a form with several files")
      return
    if name not in self._names:
      known = f"use one of {', '.join(self._names)}" if self._names else (
          "give parameters in the query string, e.g. /predict?classes=…")
      raise HttpError(400, f"form field {name[:MAX_VALUE]!r}", "is not a file", known)
    if name in self._text:
      raise HttpError(400, f"form field {name!r}", "is given twice", "give it once")
    self._field, self._text[name] = name, bytearray()

  def _data(self, data: bytes, start: int, end: int) -> None:
    if self._field is None:
      self._write(data[start:end])
      return
    value = self._text[self._field]
    value += data[start:end]
    if len(value) > MAX_FIELD:
      raise HttpError(413, f"form field {self._field!r}", f"is longer than {MAX_FIELD} bytes",
                      "shorten it")

  def _end(self) -> None:
    self._ended = True


def _form_error(reason: str) -> HttpError:
  return HttpError(400, "body", reason, f"send a form with a single file, or {SEND_RAW}")
