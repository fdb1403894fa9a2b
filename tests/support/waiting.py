"""Waiting for what another thread or process does, and free ports."""

import contextlib
import socket
import time

PATIENCE = 120  # seconds; a machine under load is no fault


def until(condition, seconds: float = PATIENCE):
  """Waits for a true value of a condition, and returns it."""
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, "never"
    time.sleep(0.02)
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
