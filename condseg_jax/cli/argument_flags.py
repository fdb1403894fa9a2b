"""Translates errors of library functions, which name arguments, to the flags of a command."""

from collections.abc import Iterator
import contextlib
import re

from condseg_jax.errors import InputError


@contextlib.contextmanager
def as_flags(**flags: str) -> Iterator[None]:
  """Replaces names of arguments by flags in an InputError.

  Names are replaced if they are the subject, and in backticks in reason and cure.

  Args:
    flags: argument → flag, e.g. rate="--scribbles".
  """
  try:
    yield
  except InputError as error:
    def replaced(text: str) -> str:
      return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)
    raise InputError(flags.get(error.subject, error.subject), replaced(error.reason),
                     replaced(error.cure), usage=error.usage, kind=error.kind) from error
