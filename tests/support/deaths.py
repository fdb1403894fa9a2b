"""Functions for workers, some of which end their process."""

import os
from pathlib import Path
import signal
import sys
import time

from condseg_jax.errors import InputError


def double(number: int) -> int:
  """Returns 2 n; 3 raises, 5 says something, 7 ends its process."""
  if number == 3:
    raise InputError("three", "is bad", "take another")
  if number == 5:
    print("five is here", file=sys.stderr)
  if number == 7:
    os.kill(os.getpid(), signal.SIGKILL)
  return 2 * number


def leave_pid(folder: Path, number: int) -> int:
  """Writes the id of its process to a file, then waits until it may end."""
  (folder / f"{number}.{os.getpid()}").touch()
  while not (folder / "go").exists():
    time.sleep(0.02)
  return number
