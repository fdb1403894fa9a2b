"""Waiting for what another thread or process does, and free ports."""

import contextlib
import socket
import time

PATIENCE = 120  # seconds; a machine under load is no fault


def until(condition, seconds: float = PATIENCE):
  """Waits for a true value of a condition, and returns it.

  The longer it takes, the more seldom it looks: looking takes time from what is waited for.
  """
  start = time.monotonic()
  while not (value := condition()):
    waited = time.monotonic() - start
    assert waited < seconds, "never"
    time.sleep(min(max(0.02, waited / 20), 0.5))
  return value


def free_port() -> int:
  """A port at which nobody listens."""
  with socket.create_server(("127.0.0.1", 0)) as listener:
    return listener.getsockname()[1]


def listens(port: int) -> bool:
  """Whether somebody listens at a port of this machine."""
  with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
    return True
  return False
