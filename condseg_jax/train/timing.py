"""Time left, and when to stop early."""

import signal
import time

import jax
from jax.experimental import multihost_utils
import numpy as np


class Clock:
  """Steps per second and time left, without what was spent on compiling and evaluating."""

  def __init__(self, first: int, steps: int):
    self._first, self._steps = first, steps
    self._started: float | None = None

  def rate(self, done: int) -> float:
    """Mean steps per second, from the second log on; NaN before."""
    if self._started is None:
      self._first, self._started = done, time.monotonic()
      return float("nan")
    return (done - self._first) / max(time.monotonic() - self._started, 1e-9)

  def left(self, done: int) -> str:
    """For people."""
    if self._started is None or done == self._first:
      return ""
    rate = self.rate(done)
    minutes, seconds = divmod(round((self._steps - done) / rate), 60)
    return f"{rate:.2f} steps/s  {minutes}:{seconds:02d} left"

  def paused(self):
    """Context whose time does not count."""
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
  """Turns SIGTERM into a question that the loop asks after every step.

  Several processes must stop after the same step. To ask each other they wait for their devices,
  which would leave these idle between steps, so they ask only when the loop waits for them anyway.
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
    """Whether to stop; with several processes only if `asks`, which must be the same in all."""
    if jax.process_count() == 1:
      return self._caught
    return asks and bool(multihost_utils.process_allgather(np.array(self._caught)).any())
