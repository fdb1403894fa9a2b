"""Who is next: one prediction at a time, a bounded number of requests behind it."""

import asyncio
from collections import deque
from collections.abc import Iterator
import contextlib
import dataclasses
import logging
from pathlib import Path
import time

from condseg_jax.errors import InputError
from condseg_jax.serve.device import Device
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import PredictRequest
from condseg_jax.system.allocator import release_memory

CLOSING_SECONDS = 5.0  # for the running prediction; Docker kills after 10
MAX_RETRY_SECONDS = 60
RESTART_SECONDS = 5.0
LOG = logging.getLogger("condseg_jax")


@dataclasses.dataclass(eq=False)
class _Entry:
  folder: Path
  order: PredictRequest
  unwanted: asyncio.Event
  outcome: asyncio.Future


class Queue:
  """Requests in the order in which they came.

  Attributes:
    device: carries them out.
    taken: places that are taken, by requests being sent, waiting or predicted.
  """

  def __init__(self, device: Device, limits: Limits):
    self.device, self._limits = device, limits
    self.taken, self._entries, self._wake = 0, deque(), asyncio.Event()
    self._running: _Entry | None = None
    self._closing = False
    self._usual_seconds = 1.0

  @property
  def places(self) -> int:
    return self._limits.waiting + 1

  @property
  def running(self) -> bool:
    """Whether something is predicted."""
    return self._running is not None

  @contextlib.contextmanager
  def place(self) -> Iterator[None]:
    """Holds a place from the first byte of a body until its answer is sent.

    Raises:
      HttpError: all are taken, or the service is not ready.
    """
    if self._closing:
      raise closing()
    if self.device.table is None:
      raise HttpError(503, "service", "is still loading its network", "try again",
                    retry_after=round(RESTART_SECONDS))
    if self.taken >= self.places:
      seconds = round(self._usual_seconds * self.taken / 2)
      raise HttpError(429, "service", f"has {self.taken} requests already", "try again later",
                    retry_after=min(max(1, seconds), MAX_RETRY_SECONDS))
    self.taken += 1
    try:
      yield
    finally:
      self.taken -= 1
      if not self.taken:
        release_memory()

  async def predict(self, folder: Path, order: PredictRequest) -> dict:
    """Waits for its turn and for the outcome, see `Device.run`.

    When cancelled it is out of the queue, or stopped, before it returns.

    Raises:
      HttpError: the service ends.
    """
    if self._closing:
      raise closing()
    entry = _Entry(folder, order, asyncio.Event(), asyncio.get_running_loop().create_future())
    self._entries.append(entry)
    self._wake.set()
    try:
      outcome = await asyncio.shield(entry.outcome)
    except asyncio.CancelledError:
      entry.unwanted.set()
      if entry in self._entries:
        self._entries.remove(entry)
      else:
        await asyncio.shield(entry.outcome)
      raise
    if outcome["status"] == 0:
      raise closing()
    return outcome

  async def run(self) -> None:
    """Starts the device and works until the service ends.

    Raises:
      InputError: the device cannot be started for the first time.
    """
    await self.device.start()
    while True:
      if not self.device.ready:
        if self._closing:
          return
        await self._restart()
        continue
      while not self._entries:
        self._wake.clear()
        await self._wake.wait()
      entry = self._running = self._entries.popleft()
      start, outcome = time.monotonic(), None
      try:
        outcome = await self.device.run(entry.folder, entry.order, entry.unwanted)
      finally:
        self._running = None
        if outcome is None and not self._closing and not entry.unwanted.is_set():
          self._entries.appendleft(entry)
        else:
          entry.outcome.set_result(outcome or {"status": 0})
      self._usual_seconds += (time.monotonic() - start - self._usual_seconds) / 4

  def close(self) -> None:
    """Takes nothing more, sends away who waits, and gives what is running a little time."""
    self._closing = True
    while self._entries:
      self._entries.popleft().outcome.set_result({"status": 0})
    asyncio.get_running_loop().call_later(CLOSING_SECONDS, self._stop)

  def _stop(self) -> None:
    if self._running is not None:
      self._running.unwanted.set()
      self.device.kill()

  async def _restart(self) -> None:
    LOG.warning("the worker has ended; a new one is started")
    try:
      await self.device.start()
    except InputError as error:
      LOG.error("%s", error)
      while self._entries:
        self._entries.popleft().outcome.set_result(
            {"status": 503, "error": "service", "reason": "has lost its network",
             "cure": "its log says why"})
      await asyncio.sleep(RESTART_SECONDS)


def closing() -> HttpError:
  """What is told when the service ends."""
  return HttpError(503, "service", "is being stopped", "try again when it is back", retry_after=10)
