"""Remaining time, and early stopping on SIGTERM."""

import signal
import time

import jax
from jax.experimental import multihost_utils
import numpy as np


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
  """

  def __enter__(self):
    self._caught = False
    self._before = signal.signal(signal.SIGTERM, self._catch)
    return self

  def __exit__(self, *_):
    signal.signal(signal.SIGTERM, self._before)

  def _catch(self, *_):
    self._caught = True

  def everywhere(self, *, asks: bool) -> bool:
    """Returns whether to stop; with several processes only if `asks`, which must agree in all."""
    if jax.process_count() == 1:
      return self._caught
    return asks and bool(multihost_utils.process_allgather(np.array(self._caught)).any())
