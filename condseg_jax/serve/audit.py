"""The audit log: who asked for what, and when, as lines of JSON; nothing of patients or files.

    {"time": "2026-01-31T08:15:00.123Z", "token": "ward", "route": "/predict", "classes": "liver",
     "outcome": 200, "seconds": 12.3}
"""

from datetime import datetime
from datetime import UTC
import json
import logging
from logging.handlers import RotatingFileHandler
import os
import time

from condseg_jax.errors import InputError
from condseg_jax.serve.request import PredictRequest

MAX_BYTES, FORMER_FILES = 10 << 20, 10  # of a file; FILE.1 to FILE.10 are the ones before it
STRANGER_SECONDS = 1.0  # between two lines about requests without a valid token
LOG = logging.getLogger("condseg_jax")


class Audit:
  """An audit log.

  Args:
    path: the file; at `MAX_BYTES` it is renamed and begun anew.

  Raises:
    InputError: it cannot be written.
  """

  def __init__(self, path: str | os.PathLike):
    try:
      handler = _Handler(path, maxBytes=MAX_BYTES, backupCount=FORMER_FILES, encoding="utf-8")
    except OSError as error:
      raise InputError(path, f"cannot be written: {error.strerror}", "check the path",
                       usage=True) from error
    self._logger = logging.Logger("audit")
    self._logger.addHandler(handler)
    self._stranger = -STRANGER_SECONDS  # when the last line about one was written

  def write(self, token: str, route: str, outcome: int | str, seconds: float,
            classes: str = "") -> None:
    """Writes a line.

    Args:
      token: its name; "" for none.
      route: as the service declares it, without what a request puts into it.
      outcome: HTTP status.
      seconds: until the answer was sent.
      classes: see `named_classes`; "" if the request segments nothing.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": now, "token": token, "route": route, "classes": classes, "outcome": outcome,
            "seconds": round(seconds, 3)}
    self._logger.info(json.dumps(line))

  def write_stranger(self, route: str, status: int) -> None:
    """Writes a line about a refused request, at most once a second: many must not push out others.

    Args:
      route: see `write`.
      status: of the refusal.
    """
    now = time.monotonic()
    if now - self._stranger >= STRANGER_SECONDS:
      self._stranger = now
      self.write("", route, status, 0.0)


def named_classes(request: PredictRequest) -> str:
  """Returns the classes of a request as it names them: names, `preset:NAME`, or `all`."""
  if request.classes:
    return ",".join(request.classes)
  return f"preset:{request.preset}" if request.preset else "all"


class _Handler(RotatingFileHandler):
  """Says once that the disk is full, and goes on."""

  _failed = False

  def handleError(self, _record: logging.LogRecord) -> None:
    if not self._failed:
      LOG.exception("the audit log cannot be written")
    self._failed = True
