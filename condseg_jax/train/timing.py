"""Remaining time, and early stopping on SIGTERM."""

from collections.abc import Callable
import contextlib
import logging
import os
import signal
import socket
import threading
import time

import jax
from jax.experimental import multihost_utils
import numpy as np

log = logging.getLogger("condseg_jax")


class Clock:
  """Estimates steps per second and remaining time, excluding compilation and evaluation."""

  def __init__(self, first: int, steps: int):
    self._first, self._steps = first, steps
    self._started: float | None = None

  def rate(self, done: int) -> float:
    """Returns the mean steps per second from the second log on; NaN before."""
    if self._started is None:
      self._first, self._started = done, time.monotonic()
      return float("nan")
    return (done - self._first) / max(time.monotonic() - self._started, 1e-9)

  def left(self, done: int) -> str:
    """Formats the remaining time for display."""
    if self._started is None or done == self._first:
      return ""
    rate = self.rate(done)
    minutes, seconds = divmod(round((self._steps - done) / rate), 60)
    return f"{rate:.2f} steps/s  {minutes}:{seconds:02d} left"

  def paused(self):
    """Returns a context whose duration is excluded."""
    return _Pause(self)

  def shift(self, seconds: float) -> None:
    if self._started is not None:
      self._started += seconds


class _Pause:

  def __init__(self, clock: Clock):
    self._clock = clock

  def __enter__(self):
    self._from = time.monotonic()

  def __exit__(self, *_):
    self._clock.shift(time.monotonic() - self._from)


class Interrupt:
  """Records SIGTERM for the loop to check after every step.

  Several processes must stop after the same step. Agreeing on it synchronises with the devices,
  which would leave them idle between steps, so processes do it only where the loop waits anyway.

  While the first step is compiled, which may take minutes, Python runs no signal handler. A thread
  then ends the process, since there is nothing yet to save.

  Signals are the main thread's: a training in another one, as in a worker of a cluster, ends with
  its process, and resumes from its last checkpoint.

  Args:
    at_end: called before the thread ends the process.
  """

  def __init__(self, at_end: Callable[[], None] = lambda: None):
    self._at_end = at_end

  def __enter__(self):
    self._caught = False
    self._stepped = False
    self._hears = threading.current_thread() is threading.main_thread()
    if not self._hears:
      return self
    self._before = signal.signal(signal.SIGTERM, self._catch)
    # The interpreter writes to this file when a signal arrives, whatever the main thread does.
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=self._watch, name="interrupt", daemon=True).start()
    return self

  def __exit__(self, *_):
    self._stepped = True
    if not self._hears:
      return
    signal.set_wakeup_fd(self._wakeup)
    signal.signal(signal.SIGTERM, self._before)
    self._writer.close()  # ends the thread
    self._reader.close()

  def _catch(self, *_):
    self._caught = True

  def _watch(self) -> None:
    with contextlib.suppress(OSError):
      while number := self._reader.recv(1):
        if number[0] == signal.SIGTERM and not self._stepped:
          log.info("stopped before the first step; re-run the command to resume")
          self._at_end()
          os._exit(0)

  def everywhere(self, *, asks: bool) -> bool:
    """Returns whether to stop; with several processes only if `asks`, which must agree in all.

    Call it after every step.
    """
    self._stepped = True
    if jax.process_count() == 1:
      return self._caught
    return asks and bool(multihost_utils.process_allgather(np.array(self._caught)).any())
