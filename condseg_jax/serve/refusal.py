"""A request that is not answered as asked: a status, and one JSON line in words of the request."""

from collections.abc import Sequence
import re

from condseg_jax.errors import InputError

MEMBER = "member_{:05d}"  # own name of a file from a zip
MAX_NAME = 80  # of the sender's names that are told back
_MEMBER = re.compile(r"(?:series/)?member_(\d{5})")
_PATH = re.compile(r"(?<![\w.])(?:/[\w.+-]+){2,}/?")


class Refusal(Exception):
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


def refused(error: InputError, status: int, folder="", names: Sequence[str] = ()) -> Refusal:
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
  return Refusal(status, subject, told(error.reason), told(error.cure))


def no_disk(error: OSError) -> Refusal:
  """A disk that is full or fails, which is not the sender's fault."""
  return Refusal(507, "service", f"cannot use its disk: {error.strerror}", "try again later")


def _name(names: Sequence[str], number: int) -> str:
  return repr(names[number][-MAX_NAME:]) if number < len(names) else "a file of the zip"
