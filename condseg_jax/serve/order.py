"""What a request asks for: its query and its Accept header, checked before its body is read."""

from collections.abc import Collection, Iterable
import dataclasses
import math

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.serve.refusal import Refusal
from condseg_jax.serve.refusal import refused

# Output → media types by which Accept asks for it.
OUTPUTS = {"zip": ("application/zip",),
           "label": ("application/gzip", "application/x-gzip", "application/octet-stream"),
           "statistics": ("application/json",),
           "page": ("multipart/form-data",)}
# Files in the folder of a request.
BODY, ANSWER = "body", "answer"
PARAMETERS = ("classes", "preset", "fusion", "threshold", "series", "force", "output")


@dataclasses.dataclass(frozen=True)
class Order:
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


def read_order(query: Iterable[tuple[str, str]], accept: str, table: ClassTable,
               fusions: Collection[str]) -> Order:
  """The order in a request.

  Args:
    query: names and values.
    accept: the header; the query's `output` comes first.
    table: the classes that the network knows.
    fusions: the ways in which classes can share voxels.

  Raises:
    Refusal: unknown, doubled or senseless parameters; an answer that there is none of.
  """
  given: dict[str, str] = {}
  for name, value in query:
    if name not in PARAMETERS:
      raise Refusal(400, f"parameter {name[:40]!r}", "is not known",
                    f"one of {', '.join(PARAMETERS)}")
    if name in given:
      raise Refusal(400, name, "is given twice", "give it once, classes with commas between them")
    given[name] = value
  classes = tuple(name.strip() for name in given.get("classes", "").split(",") if name.strip())
  order = Order(classes, given.get("preset", ""), given.get("fusion", "argmax"),
                _threshold(given.get("threshold", "0.5")), given.get("series", ""),
                _switch(given.get("force", "0")), given.get("output") or _accepted(accept))
  if order.output not in OUTPUTS:
    raise Refusal(400, f"output {order.output[:40]!r}", "is not known",
                  f"one of {', '.join(OUTPUTS)}")
  if order.fusion not in fusions:
    raise Refusal(400, f"fusion {order.fusion[:40]!r}", "is not known",
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
    raise Refusal(400, "threshold", f"is {text[:40]!r}", "give a number from 0 to 1")
  return value


def _switch(text: str) -> bool:
  if text not in ("0", "1"):
    raise Refusal(400, "force", f"is {text[:40]!r}", "give 0 or 1")
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
  raise Refusal(406, "Accept", "names no type that is answered",
                f"one of {', '.join(types[0] for types in OUTPUTS.values())}")
