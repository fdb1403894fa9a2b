"""What a request asks for: its query and its Accept header, checked before its body is read."""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math
import re

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError

# Output → media types by which Accept asks for it.
OUTPUTS = {"zip": ("application/zip",),
           "label": ("application/gzip", "application/x-gzip", "application/octet-stream"),
           "statistics": ("application/json",),
           "page": ("multipart/form-data",)}
# Files in the folder of a request.
BODY, ANSWER = "body", "answer"
PARAMETERS = ("classes", "preset", "fusion", "threshold", "series", "force", "output")


@dataclasses.dataclass(frozen=True)
class PredictRequest:
  """A prediction that was ordered.

  Attributes:
    classes, preset, fusion, threshold: as of `Predictor.predict`.
    series: SeriesInstanceUID, where a zip holds several.
    force: go on with a volume that looks implausible.
    output: a key of `OUTPUTS`.
  """

  classes: tuple[str, ...] = ()
  preset: str = ""
  fusion: str = "argmax"
  threshold: float = 0.5
  series: str = ""
  force: bool = False
  output: str = "zip"


def read_request(query: Iterable[tuple[str, str]], accept: str, table: ClassTable,
               fusions: Collection[str]) -> PredictRequest:
  """The order in a request.

  Args:
    query: names and values.
    accept: the header; the query's `output` comes first.
    table: the classes that the network knows.
    fusions: the ways in which classes can share voxels.

  Raises:
    HttpError: unknown, doubled or senseless parameters; an answer that there is none of.
  """
  given: dict[str, str] = {}
  for name, value in query:
    if name not in PARAMETERS:
      raise HttpError(400, f"parameter {name[:40]!r}", "is not known",
                    f"one of {', '.join(PARAMETERS)}")
    if name in given:
      raise HttpError(400, name, "is given twice", "give it once, classes with commas between them")
    given[name] = value
  classes = tuple(name.strip() for name in given.get("classes", "").split(",") if name.strip())
  order = PredictRequest(classes, given.get("preset", ""), given.get("fusion", "argmax"),
                _threshold(given.get("threshold", "0.5")), given.get("series", ""),
                _switch(given.get("force", "0")), given.get("output") or _accepted(accept))
  if order.output not in OUTPUTS:
    raise HttpError(400, f"output {order.output[:40]!r}", "is not known",
                  f"one of {', '.join(OUTPUTS)}")
  if order.fusion not in fusions:
    raise HttpError(400, f"fusion {order.fusion[:40]!r}", "is not known",
                  f"one of {', '.join(fusions)}")
  try:
    table.select(order.classes, order.preset)
  except InputError as error:
    raise refused(error, 400) from error
  return order


def _threshold(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value <= 1:
    raise HttpError(400, "threshold", f"is {text[:40]!r}", "give a number from 0 to 1")
  return value


def _switch(text: str) -> bool:
  if text not in ("0", "1"):
    raise HttpError(400, "force", f"is {text[:40]!r}", "give 0 or 1")
  return text == "1"


def _accepted(accept: str) -> str:
  """The output that an Accept header prefers; a zip where it takes anything."""
  wanted = []
  for part in accept.split(","):
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
      wanted.append((-float(quality), media))
    except ValueError:
      continue
  for negative, media in sorted(wanted, key=lambda pair: pair[0]):
    if negative == 0:
      continue
    if media in ("*/*", "application/*", ""):
      return "zip"
    for output, types in OUTPUTS.items():
      if media in types:
        return output
  raise HttpError(406, "Accept", "names no type that is answered",
                f"one of {', '.join(types[0] for types in OUTPUTS.values())}")


# --- What one request may cost, and how many may wait.
@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of the service.

  Attributes:
    body: bytes of a body.
    waiting: requests that may wait, or still be sent, while one is predicted.
    job_seconds: time that reading, prediction and writing of one request may take.
    grace_seconds: time that a transfer has before its rate counts.
    bytes_per_second: the least rate of a transfer, in either direction, on average.
    members: files in a zip.
  """

  body: int = 512 << 20
  waiting: int = 8
  job_seconds: float = 1800.0
  grace_seconds: float = 20.0
  bytes_per_second: int = 64 << 10
  members: int = 5000

  @property
  def unpacked(self) -> int:
    """Bytes that a zip may unpack to: DICOM shrinks to a half, a third at best."""
    return 4 * self.body

  @property
  def voxels(self) -> int:
    """Voxels of a volume, as stored and at the network's spacing: those of the largest body with
    two bytes for each."""
    return self.body // 2

  def transfer_seconds(self, size: int) -> float:
    """Time within which so many bytes must have been transferred."""
    return self.grace_seconds + size / self.bytes_per_second


# --- A request that is not answered as asked: a status, and one JSON line in words of the request.
MEMBER = "member_{:05d}"  # own name of a file from a zip
MAX_NAME = 80  # of the sender's names that are told back
_MEMBER = re.compile(r"(?:series/)?member_(\d{5})")
_PATH = re.compile(r"(?<![\w.])(?:/[\w.+-]+){2,}/?")


class HttpError(Exception):
  """What is wrong, and the status that says whose fault it is.

  Args:
    status: HTTP status.
    subject: what is at fault, in words of the request: `body`, `classes`, …
    reason: what is wrong with it.
    cure: what the sender can do about it.
    retry_after: seconds after which the same request may be accepted.
  """

  def __init__(self, status: int, subject: str, reason: str, cure: str, *,
               retry_after: int | None = None):
    super().__init__(f"{status} {subject}: {reason} ({cure})")
    self.status, self.subject, self.reason, self.cure = status, subject, reason, cure
    self.retry_after = retry_after

  def to_json(self) -> dict:
    """The line of the answer."""
    return {"error": self.subject, "reason": self.reason, "cure": self.cure}


def refused(error: InputError, status: int, folder="", names: Sequence[str] = ()) -> HttpError:
  """A refusal that tells an error of the readers without a name of this machine.

  Args:
    error: about a file in `folder`, or about a parameter.
    status: HTTP status.
    folder: of the request, whose path the error may hold.
    names: what the sender called the files of a zip, which lie there as `MEMBER`.
  """
  def told(text: str) -> str:
    if folder:
      text = text.replace(f"{folder}/", "")
    text = _MEMBER.sub(lambda match: _name(names, int(match[1])), text)
    return _PATH.sub("…", re.sub(r"--(\w+)", r"\1=", text))

  subject = told(error.subject)
  if subject in (str(folder), "…", "series") or subject.startswith("image."):
    subject = "body"
  return HttpError(status, subject, told(error.reason), told(error.cure))


def no_disk(error: OSError) -> HttpError:
  """A disk that is full or fails, which is not the sender's fault."""
  return HttpError(507, "service", f"cannot use its disk: {error.strerror}", "try again later")


def _name(names: Sequence[str], number: int) -> str:
  return repr(names[number][-MAX_NAME:]) if number < len(names) else "a file of the zip"
