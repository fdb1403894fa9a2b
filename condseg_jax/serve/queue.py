"""The queue: one prediction at a time and a bounded number of waiting requests."""

import asyncio
from collections import Counter
from collections import deque
from collections.abc import Callable
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

CLOSING_SECONDS = 5.0  # for the running prediction to finish; Docker kills after 10
MAX_RETRY_SECONDS = 60
RESTART_SECONDS = 5.0
LOG = logging.getLogger("condseg_jax")


@dataclasses.dataclass(eq=False)
class _Entry:
  folder: Path
  request: PredictRequest
  cancelled: asyncio.Event
  outcome: asyncio.Future


class Queue:
  """Requests in order of arrival.

  Attributes:
    device: runs the requests.
    taken: occupied places, by requests that are waiting or running.
    restarts: exits of the worker.
    observe: called after each prediction with the status and the seconds of its outcome.
  """

  def __init__(self, device: Device, limits: Limits):
    self.device, self._limits = device, limits
    self.taken, self._entries, self._wake = 0, deque(), asyncio.Event()
    self._running: _Entry | None = None
    self._closing = False
    self._usual_seconds = 1.0
    self._owned: Counter[str] = Counter()  # places by owner
    self.restarts = 0
    self.observe: Callable[[int, float], None] = lambda _status, _seconds: None

  @property
  def places(self) -> int:
    """Number of places, including the one of the running request."""
    return self._limits.places

  @property
  def running(self) -> bool:
    """Whether a prediction is running."""
    return self._running is not None

  def check(self, owner: str = "") -> None:
    """Raises HttpError if there is no place: the queue is full, or the service is not ready.

    Args:
      owner: name of a token, of which none may have more than half of the places; "" for none.
    """
    self._check_ready()
    seconds = min(max(1, round(self._usual_seconds * self.taken / 2)), MAX_RETRY_SECONDS)
    if self.taken >= self.places:
      raise HttpError(429, "service", f"the queue is full ({self.taken} requests)",
                      "try again later", retry_after=seconds)
    if owner and self._owned[owner] >= self._limits.places_of_one:
      raise HttpError(429, "token", f"has {self._owned[owner]} requests in the queue",
                      "wait for one of them", retry_after=seconds)

  @contextlib.contextmanager
  def place(self, owner: str = "", *, reserved: bool = False) -> Iterator[None]:
    """Occupies a place while a request waits and runs.

    Args:
      owner: see `check`.
      reserved: whether a full queue has a place for this request, too. It is for the DICOM node,
        which has accepted series already, and sends one request at a time.

    Raises:
      HttpError: see `check`.
    """
    if reserved:
      self._check_ready()
    else:
      self.check(owner)
    self.taken += 1
    self._owned[owner] += 1
    try:
      yield
    finally:
      self.taken -= 1
      self._owned[owner] -= 1
      if not self._owned[owner]:
        del self._owned[owner]
      if not self.taken:
        release_memory()

  async def predict(self, folder: Path, request: PredictRequest, *, first: bool = False) -> dict:
    """Queues a request and waits for its outcome, see `Device.run`.

    When the task is cancelled, the request is removed from the queue or stopped first.

    Args:
      folder: folder of the request with its body.
      request: the requested prediction.
      first: whether it is the next to run. A sender of one request at a time takes turns with the
        others in this way, since one of them begins before it sends its next.

    Raises:
      HttpError: the service is shutting down.
    """
    if self._closing:
      raise closing_error()
    entry = _Entry(folder, request, asyncio.Event(), asyncio.get_running_loop().create_future())
    (self._entries.appendleft if first else self._entries.append)(entry)
    self._wake.set()
    try:
      outcome = await asyncio.shield(entry.outcome)
    except asyncio.CancelledError:
      entry.cancelled.set()
      if entry in self._entries:
        self._entries.remove(entry)
      else:
        await asyncio.shield(entry.outcome)
      raise
    if outcome["status"] == 0:
      raise closing_error()
    return outcome

  def progress(self, ticket: str) -> dict:
    """Returns how far a request is.

    Args:
      ticket: of the request.

    Returns:
      `state`: waiting, running, or "" if no request with this ticket is in the queue; with it
      `ahead`, the number of requests before a waiting one, or `done`, the share of a running
      prediction that is done, None before it begins.
    """
    if self._running is not None and self._running.request.ticket == ticket:
      return {"state": "running", "done": self.device.progress}
    for ahead, entry in enumerate(self._entries, int(self.running)):
      if entry.request.ticket == ticket:
        return {"state": "waiting", "ahead": ahead}
    return {"state": ""}

  async def run(self) -> None:
    """Starts the device and runs requests until the service shuts down.

    Raises:
      InputError: the first start of the device fails.
    """
    await self.device.start()
    LOG.info("ready")
    while True:
      if not self.device.ready:
        if self._closing:
          return
        await self._restart()
      elif self._entries:
        await self._run(self._entries.popleft())
      else:
        await self._wait()

  def close(self) -> None:
    """Rejects new and waiting requests; stops the running one after `CLOSING_SECONDS`."""
    self._closing = True
    while self._entries:
      self._entries.popleft().outcome.set_result({"status": 0})
    asyncio.get_running_loop().call_later(CLOSING_SECONDS, self._stop)

  def _stop(self) -> None:
    if self._running is not None:
      self._running.cancelled.set()
      self.device.kill()

  def _check_ready(self) -> None:
    if self._closing:
      raise closing_error()
    if self.device.table is None:
      raise loading_error()

  async def _wait(self) -> None:
    """Waits for a request, or for the exit of the idle worker."""
    self._wake.clear()
    tasks = [asyncio.ensure_future(event) for event in (self._wake.wait(), self.device.exited())]
    try:
      await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
      for task in tasks:
        task.cancel()

  async def _run(self, entry: _Entry) -> None:
    """Runs a request; it returns to the queue if the worker had exited before receiving it."""
    self._running = entry
    start, outcome = time.monotonic(), None
    try:
      outcome = await self.device.run(entry.folder, entry.request, entry.cancelled)
    finally:
      self._running = None
      if outcome is None and not self._closing and not entry.cancelled.is_set():
        self._entries.appendleft(entry)
      else:
        entry.outcome.set_result(outcome or {"status": 0})
    seconds = time.monotonic() - start
    self._usual_seconds += (seconds - self._usual_seconds) / 4
    if outcome and outcome["status"]:
      self.observe(outcome["status"], seconds)

  async def _restart(self) -> None:
    LOG.warning("the worker has exited; restarting it")
    self.restarts += 1
    try:
      await self.device.start()
      LOG.info("ready")
    except InputError as error:
      LOG.error("%s", error)
      while self._entries:
        self._entries.popleft().outcome.set_result(
            {"status": 503, "error": "service", "reason": "cannot reload its network",
             "cure": "see the service log"})
      await asyncio.sleep(RESTART_SECONDS)


def closing_error() -> HttpError:
  """Returns the error for requests during shutdown."""
  return HttpError(503, "service", "is shutting down", "try again after its restart",
                   retry_after=10)


def loading_error() -> HttpError:
  """Returns the error for requests before the network is loaded."""
  return HttpError(503, "service", "is still loading its network", "try again shortly",
                   retry_after=round(RESTART_SECONDS))
