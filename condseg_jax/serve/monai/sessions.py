"""Sessions: images that clients have sent, kept for an hour, so that they need not send them again.

Their number is bounded: the one that was not used for longest gives way to a new one.
"""

import os
from pathlib import Path
import time
import uuid

from condseg_jax.serve.request import HttpError

SECONDS = 3600  # without use, after which a session ends
MAX_SESSIONS = 8


class Sessions:
  """The sessions of a service.

  Args:
    folder: for their images; removed with the service.
  """

  def __init__(self, folder: Path):
    self._folder = folder
    self._sessions: dict[str, dict] = {}  # by last use

  def add(self, received: Path, seconds: int = 0) -> tuple[str, dict]:
    """Starts a session.

    Args:
      received: its image, on the file system of `folder`; it is moved.
      seconds: without use, after which it ends; at most and by default `SECONDS`.

    Returns:
      Its id, and what is told of it.
    """
    self._expire()
    while len(self._sessions) >= MAX_SESSIONS:
      self._drop(next(iter(self._sessions)))
    name = str(uuid.uuid4())
    self._folder.mkdir(exist_ok=True)
    received.rename(self._folder / name)
    now = int(time.time())
    self._sessions[name] = {"name": name, "path": "", "image": "", "meta": {}, "create_ts": now,
                            "last_access_ts": now, "expiry": min(seconds or SECONDS, SECONDS)}
    return name, self._sessions[name]

  def get(self, name: str) -> dict:
    """Returns what is told of a session, which counts as use.

    Raises:
      HttpError: there is none with this id; it may have ended.
    """
    self._expire()
    info = self._sessions.pop(name, None)
    if info is None:
      raise HttpError(404, "session", "does not exist or has ended", "send the image again")
    self._sessions[name] = info | {"last_access_ts": int(time.time())}
    return self._sessions[name]

  def image(self, name: str) -> Path:
    """Returns the image of a session, see `get`."""
    self.get(name)
    return self._folder / name

  def link(self, name: str, path: Path) -> None:
    """Gives the image of a session a further name, under which it survives the session."""
    os.link(self.image(name), path)

  def remove(self, name: str) -> dict:
    """Ends a session, see `get`."""
    info = self.get(name)
    self._drop(name)
    return info

  def _expire(self) -> None:
    now = time.time()
    for name, info in list(self._sessions.items()):
      if info["last_access_ts"] + info["expiry"] < now:
        self._drop(name)

  def _drop(self, name: str) -> None:
    del self._sessions[name]
    (self._folder / name).unlink(missing_ok=True)
