"""Tokens: who may ask. A file holds a name and a digest of each, so that reading it lets nobody in.

    NAME sha256:HEXADECIMAL

A token is 32 random bytes: no table of digests can contain it, and a slow hash would add nothing.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
from pathlib import Path
import re
import secrets

from condseg_jax.errors import InputError
from condseg_jax.serve.request import HttpError
from condseg_jax.system.atomic import replacing

OWNER_ONLY = 0o600
LOG = logging.getLogger("condseg_jax")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,40}")
_LINE = re.compile(rf"({_NAME.pattern}) sha256:([0-9a-f]{{64}})")


class Tokens:
  """The tokens of a file, which is read again when it is changed: what is removed ends at once.

  Args:
    path: the file.

  Raises:
    InputError: it cannot be read, has an invalid line, or none.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = Path(path)
    self._digests, self._state = _read(self._path), _state(self._path)
    if not self._digests:
      raise InputError(path, "contains no token", "add one with --new_token=NAME", usage=True)

  def check(self, authorization: str) -> str:
    """Returns the name of the token in an Authorization header.

    The token is that of the scheme Bearer, or the password of the scheme Basic, whose user is its
    name: browsers ask for these.

    Raises:
      HttpError: no token, or an unknown one.
    """
    scheme, _, credentials = authorization.partition(" ")
    user, token = None, ""
    if scheme.lower() == "bearer":
      token = credentials.strip()
    elif scheme.lower() == "basic":
      user, token = _basic(credentials)
    return self.owner(token, user)

  def owner(self, token: str, user: str | None = None) -> str:
    """Returns the name of a token.

    Args:
      token: the token.
      user: the name that it must have; None for any.

    Raises:
      HttpError: it is unknown, or has another name.
    """
    digest, found = _digest(token), ""
    for name, known in self._current().items():  # all of them: the time tells nothing
      if hmac.compare_digest(digest, known):
        found = name
    if not found or user is not None and not hmac.compare_digest(user.encode(), found.encode()):
      raise HttpError(401, "token", "is missing or unknown",
                      "send it as `Authorization: Bearer TOKEN`, or name and token as user and "
                      "password")
    return found

  def _current(self) -> dict[str, str]:
    state = _state(self._path)
    if state != self._state:
      self._state = state
      try:
        self._digests = _read(self._path)
        LOG.info("%d tokens", len(self._digests))
      except InputError as error:
        LOG.error("%s; the tokens before stay valid", error)
    return self._digests


def add_token(path: str | os.PathLike, name: str) -> str:
  """Adds a new token to a file and returns it; nothing else keeps it.

  Args:
    path: the file; made if there is none, for its owner alone.
    name: of the token, e.g. of the person or program that will use it.

  Raises:
    InputError: an invalid name, or one that the file has; or the file is invalid or cannot be
      written.
  """
  path = Path(path)
  if not _NAME.fullmatch(name):
    raise InputError(f"token {name!r}", "is not a valid name",
                     "use up to 40 letters, digits, and . _ @ -", usage=True)
  mode, text = OWNER_ONLY, ""
  if path.exists():
    if name in _read(path):
      raise InputError(path, f"has a token {name!r}", "choose another name, or remove its line",
                       usage=True)
    mode, text = path.stat().st_mode & 0o777, path.read_text(encoding="utf-8").rstrip("\n") + "\n"
  token = secrets.token_urlsafe(32)
  with replacing(path) as temporary:
    Path(temporary).touch(mode)
    temporary.write_text(f"{text}{name} sha256:{_digest(token)}\n", encoding="utf-8")
  return token


def _read(path: Path) -> dict[str, str]:
  """Returns name → digest; empty lines and those that begin with # are passed over."""
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "is not UTF-8"
    raise InputError(path, f"cannot be read: {reason}", "make it with --new_token=NAME",
                     usage=True) from error
  digests: dict[str, str] = {}
  for number, line in enumerate(map(str.strip, lines), 1):
    if not line or line.startswith("#"):
      continue
    match = _LINE.fullmatch(line)
    if match is None or match[1] in digests:
      raise InputError(path, f"line {number} is not NAME sha256:HEXADECIMAL, or has the name of "
                       "another", "correct it, or make a token with --new_token=NAME", usage=True)
    digests[match[1]] = match[2]
  return digests


def _state(path: Path) -> tuple[int, int, int] | None:
  try:
    stat = path.stat()
  except OSError:
    return None
  return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _digest(token: str) -> str:
  return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _basic(credentials: str) -> tuple[str, str]:
  try:
    user, _, token = base64.b64decode(credentials, validate=True).decode().partition(":")
  except (binascii.Error, ValueError):
    return "", ""
  return user, token
