"""Requests of the service: limits, errors in terms of the request, and the query of a prediction.

The query and the Accept header are checked before the body is read. An error becomes an HTTP status
and one line of JSON (`HttpError`); it never contains a path of this machine.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math
import os
import re

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError

# Output → media types of the Accept header that select it; the first output that has one.
OUTPUTS = {"zip": ("application/zip",),
           "label": ("application/gzip", "application/x-gzip", "application/octet-stream"),
           "statistics": ("application/json",),
           "dicom_seg": ("application/dicom",),
           "dicom_rtstruct": ("application/dicom",),
           "dicom": ("application/zip",),  # both objects
           "page": ("multipart/form-data",)}
PARAMETERS = ("classes", "preset", "fusion", "threshold", "study", "series", "force", "output",
              "store", "ticket")
# Output → the DICOM objects in it.
DICOM_OUTPUTS = {"dicom_seg": ("seg",), "dicom_rtstruct": ("rtstruct",),
                 "dicom": ("seg", "rtstruct")}

# Files in the folder of a request.
BODY, ANSWER = "body", "answer"
SERIES = "series"  # folder of a DICOM series, unpacked or placed there
MEMBER = "member_{:05d}"  # a file unpacked from a zip archive, before its suffix

FREE_BYTES = 1 << 30  # of a disk, that what is kept of requests leaves to others
MAX_NAME = 80  # characters of a sender's file name that are quoted in an error
MAX_VALUE = 40  # the same for a parameter or header
_MEMBER = re.compile(r"(?:series/)?member_(\d{5})(?:\.[a-z]+)?")
_PATH = re.compile(r"(?<![\w.])(?:/[\w.+-]+){2,}/?")
_TICKET = re.compile(rf"(?:[A-Za-z0-9-]{{16,{MAX_VALUE}}})?")
_FLAG = re.compile(r"--(\w+)")


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of the service.

  Attributes:
    body: maximum size of a body, in bytes.
    waiting: maximum number of requests that wait during a prediction.
    job_seconds: maximum time for reading, prediction and writing of one request.
    grace_seconds: duration of a transfer before its rate is checked.
    bytes_per_second: minimum average rate of a transfer, in either direction.
    contended_seconds: the same as `grace_seconds` for a body whose place another one needs.
    members: maximum number of files in a zip archive.
    memory: maximum memory in bytes of an image and its prediction, besides that of the network;
      estimated from the header of the image.
  """

  body: int = 512 << 20
  waiting: int = 8
  job_seconds: float = 1800.0
  grace_seconds: float = 20.0
  bytes_per_second: int = 64 << 10
  contended_seconds: float = 2.0
  members: int = 5000
  memory: int = 4_000_000_000

  @property
  def places(self) -> int:
    """Maximum number of waiting and running requests; also of bodies received at a time."""
    return self.waiting + 1

  @property
  def places_of_one(self) -> int:
    """Maximum number of waiting and running requests of one token."""
    return (self.places + 1) // 2

  @property
  def unpacked(self) -> int:
    """Maximum unpacked size of a zip archive in bytes; DICOM compresses to a third at best."""
    return 4 * self.body

  def transfer_seconds(self, size: int) -> float:
    """Returns the maximum duration of a transfer of `size` bytes."""
    return self.grace_seconds + size / self.bytes_per_second


class HttpError(Exception):
  """An error that is answered with an HTTP status and one line of JSON.

  Args:
    status: HTTP status.
    subject: cause of the error in terms of the request: `body`, `classes`, …
    reason: what is wrong with it.
    cure: what the sender can do about it.
    retry_after: seconds after which the same request may succeed.
  """

  def __init__(self, status: int, subject: str, reason: str, cure: str, *,
               retry_after: int | None = None):
    super().__init__(f"{status} {subject}: {reason} ({cure})")
    self.status, self.subject, self.reason, self.cure = status, subject, reason, cure
    self.retry_after = retry_after

  def to_json(self) -> dict:
    """Returns the content of the JSON line."""
    return {"error": self.subject, "reason": self.reason, "cure": self.cure}


def to_http_error(error: InputError, status: int, folder: str | os.PathLike = "",
                  names: Sequence[str] = ()) -> HttpError:
  """Converts an error of the readers, replacing paths of this machine and command-line flags.

  Args:
    error: about a file in `folder`, or about a parameter.
    status: HTTP status.
    folder: of the request; the error may contain its path.
    names: the sender's names of the files of a zip archive, which are stored as `MEMBER`.
  """
  def public(text: str) -> str:
    if folder:
      text = text.replace(f"{folder}/", "")
    text = _MEMBER.sub(lambda match: _original_name(names, int(match[1])), text)
    return _PATH.sub("…", _FLAG.sub(r"\1=", text))

  subject = public(error.subject)
  if subject in (str(folder), "…", "series") or subject.startswith("image."):
    subject = "body"
  return HttpError(status, subject, public(error.reason), public(error.cure))


def disk_error(error: OSError) -> HttpError:
  """Returns the error for a full or failing disk of the service."""
  return HttpError(507, "service", f"disk error: {error.strerror}", "try again later")


@dataclasses.dataclass(frozen=True)
class PredictRequest:
  """A requested prediction.

  Attributes:
    classes, preset, fusion, threshold: see `Predictor.predict`.
    study: StudyInstanceUID on the DICOMweb server of the service, instead of a body.
    series: SeriesInstanceUID to select from a zip archive or study with several DICOM series.
    force: predict even if the volume looks implausible.
    output: a key of `OUTPUTS`.
    store: store the DICOM objects on the DICOMweb server, too.
    suffix: of label maps of volumes: .nii.gz or .nrrd.
    ticket: by which its sender asks how far it is; "" for none.
  """

  classes: tuple[str, ...] = ()
  preset: str = ""
  fusion: str = "argmax"
  threshold: float = 0.5
  study: str = ""
  series: str = ""
  force: bool = False
  output: str = "zip"
  store: bool = False
  suffix: str = ".nii.gz"
  ticket: str = ""


def read_request(query: Iterable[tuple[str, str]], accept: str, table: ClassTable,
                 fusions: Collection[str]) -> PredictRequest:
  """Parses the query and the Accept header of a prediction.

  Args:
    query: names and values of the parameters.
    accept: the Accept header; the parameter `output` takes precedence.
    table: classes of the network.
    fusions: supported values of `fusion`.

  Raises:
    HttpError: an unknown, repeated or invalid parameter, or an unsupported output type.
  """
  given: dict[str, str] = {}
  for name, value in query:
    if name not in PARAMETERS:
      raise HttpError(400, "query", f"unknown parameter {name[:MAX_VALUE]!r}",
                      f"use one of {', '.join(PARAMETERS)}")
    if name in given:
      raise HttpError(400, name, "is given twice", "give it once; separate classes with commas")
    given[name] = value
  request = PredictRequest(
      classes=tuple(name.strip() for name in given.get("classes", "").split(",") if name.strip()),
      preset=given.get("preset", ""), fusion=given.get("fusion", "argmax"),
      threshold=_parse_threshold(given.get("threshold", "0.5")), study=given.get("study", ""),
      series=given.get("series", ""), store=_parse_switch("store", given.get("store", "0")),
      force=_parse_switch("force", given.get("force", "0")),
      output=given.get("output") or _accepted_output(accept), ticket=given.get("ticket", ""))
  _check_choice("output", request.output, OUTPUTS)
  _check_choice("fusion", request.fusion, fusions)
  if not _TICKET.fullmatch(request.ticket):
    raise HttpError(400, "ticket", f"must be 16 to {MAX_VALUE} letters, digits or -, got "
                    f"{request.ticket[:MAX_VALUE]!r}", "choose one at random, e.g. a UUID")
  if request.store and request.output not in DICOM_OUTPUTS:
    raise HttpError(400, "store", f"output {request.output} is no DICOM object",
                    f"request one of {', '.join(DICOM_OUTPUTS)}")
  try:
    table.select(request.classes, request.preset)
  except InputError as error:
    raise to_http_error(error, 400) from error
  return request


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
  if value not in choices:
    raise HttpError(400, name, f"unknown value {value[:MAX_VALUE]!r}",
                    f"use one of {', '.join(choices)}")


def _parse_threshold(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value <= 1:
    raise HttpError(400, "threshold", f"must be in [0, 1], got {text[:MAX_VALUE]!r}",
                    "give a number such as 0.5")
  return value


def _parse_switch(name: str, text: str) -> bool:
  _check_choice(name, text, ("0", "1"))
  return text == "1"


def _accepted_output(accept: str) -> str:
  """Returns the output that an Accept header prefers; a zip archive for wildcards."""
  preferences = []
  for entry in accept.split(","):
    media, *parameters = (piece.strip().lower() for piece in entry.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
      preferences.append((-float(quality), media))
    except ValueError:
      continue
  for negative, media in sorted(preferences, key=lambda pair: pair[0]):
    if negative == 0:
      continue
    if media in ("*/*", "application/*", ""):
      return "zip"
    for output, types in OUTPUTS.items():
      if media in types:
        return output
  raise HttpError(406, "Accept", "contains no supported media type",
                  f"use one of {', '.join(dict.fromkeys(t[0] for t in OUTPUTS.values()))}")


def _original_name(names: Sequence[str], number: int) -> str:
  return repr(names[number][-MAX_NAME:]) if number < len(names) else "a file of the zip archive"
