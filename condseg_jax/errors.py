"""The error for users: which file or setting is wrong, why, and what to do about it."""

import functools
import unicodedata

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph ends


def printable(text: object) -> str:
  """Returns a text as one line of valid Unicode, for terminals, figures and pages.

  File names may contain line breaks, control characters and bytes that are not UTF-8, which Python
  keeps as surrogates. They become escapes: `\\n`, `\\x1b`, `\\xe9`.
  """
  return "".join(_escaped(character) if unicodedata.category(character) in _UNPRINTABLE else
                 character for character in str(text))


def _escaped(character: str) -> str:
  if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name, see `os.fsdecode`
    return f"\\x{ord(character) - 0xDC00:02x}"
  return character.encode("unicode_escape").decode()


class InputError(ValueError):
  """Invalid input, reported in one line: `subject: reason (cure)`, made `printable`.

  Args:
    subject: the file, folder, class, setting or argument at fault.
    reason: what is wrong with it.
    cure: what the user can do about it. Names of arguments stand in backticks, so that a command
      can replace them by its flags.
    usage: True for a usage error (exit code 2), False for a failed job (exit code 1).
    kind: name of the defect, as `condseg-verify` lists it.
  """

  def __init__(self, subject: object, reason: str, cure: str, *, usage: bool = False,
               kind: str = "unreadable") -> None:
    self.kind = kind
    self.usage = usage
    self.subject, self.reason, self.cure = map(printable, (subject, reason, cure))
    super().__init__(f"{self.subject}: {self.reason} ({self.cure})")

  def renamed(self, old: object, new: object) -> "InputError":
    """Returns the error with another name for a path, as for a file that was fetched."""
    subject, reason = (text.replace(printable(old), printable(new))
                       for text in (self.subject, self.reason))
    return InputError(subject, reason, self.cure, usage=self.usage, kind=self.kind)

  def __reduce__(self):
    """Pickles, which workers of a cluster and of pools need, by the arguments."""
    made = functools.partial(InputError, usage=self.usage, kind=self.kind)
    return made, (self.subject, self.reason, self.cure)
