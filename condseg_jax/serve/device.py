"""The worker process as seen from the web process: starts it, sends requests, cancels them.

Requests and events are lines of JSON on the standard streams of the worker, see `worker`.
"""

import asyncio
from collections.abc import Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import signal
import sys

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import PredictRequest

STOP_SECONDS = 10.0  # for a cancelled worker to reach the next window
MAX_LINE = 1 << 24  # bytes of an event
SMALLER = "send a smaller volume or request fewer classes"
CONVERT = "convert the image again, e.g. with dcm2niix"


def worker_command(workdir: str, checkpoint: str, members: int = 0, *,
                   volumes: bool = False) -> tuple[str, ...]:
  """Returns the command that starts the worker.

  Args:
    workdir: folder of the training run, or a bundle.
    checkpoint: `last`, `best` or a step.
    members: number of members of an ensemble to use; 0 for all.
    volumes: whether the network has to be 3-D.
  """
  # -P: files in the current folder are not importable.
  return (sys.executable, "-P", "-m", "condseg_jax.serve.worker", str(workdir), checkpoint,
          str(members), *(["volumes"] if volumes else []))


class Device:
  """The only worker. It can be started again after it has exited.

  Args:
    command: starts the worker, see `worker_command`.
    limits: of requests.

  Attributes:
    table: classes of the network; None until the worker has been ready once.
    fusions: supported values of `fusion`.
    axes: number of axes of the images, 2 or 3.
    progress: share of the current prediction that is done; None before it begins.
    ready: whether the worker accepts requests.
  """

  def __init__(self, command: Sequence[str], limits: Limits):
    self._command, self._limits = command, limits
    self._phase = ""  # of the current request: reading, predicting
    self._process: asyncio.subprocess.Process | None = None
    self.table: ClassTable | None = None
    self.fusions: tuple[str, ...] = ()
    self.axes = 3
    self.progress: float | None = None
    self.ready = False

  async def start(self) -> None:
    """Starts the worker and waits until the network is loaded and compiled.

    Raises:
      InputError: the network cannot be loaded.
    """
    self._process = await asyncio.create_subprocess_exec(
        *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE, start_new_session=True)  # shields it from the signals of the terminal
    event = await self._event()
    if event.get("event") == "failed":
      await self._process.wait()
      raise InputError(event["subject"], event["reason"], event["cure"], usage=event["usage"])
    if event.get("event") != "ready":
      code = await self._process.wait()
      raise InputError("worker", f"exited with code {code} while loading the network",
                       "see the log lines above")
    self.table, self.fusions = ClassTable.from_json(event["table"]), tuple(event["fusions"])
    self.axes = event["axes"]
    self.ready = True

  async def run(self, folder: Path, request: PredictRequest,
                cancelled: asyncio.Event) -> dict | None:
    """Runs a request.

    Args:
      folder: folder of the request with its body; the answer is written there.
      request: the requested prediction.
      cancelled: stops the prediction when set.

    Returns:
      The outcome of `handler.handle`, or status 0 if cancelled, 422 or 504 after a timeout, 422 or
      503 if the worker exited; failures while a body is read are attributed to the body (422). None
      if the worker had exited before it received the request. On return, the worker no longer
      accesses the folder.
    """
    self._phase, self.progress = "", None
    line = {"folder": str(folder), "request": dataclasses.asdict(request),
            "limits": dataclasses.asdict(self._limits)}
    with contextlib.suppress(ConnectionError):
      self._process.stdin.write(json.dumps(line).encode() + b"\n")
      await self._process.stdin.drain()
    outcome = asyncio.ensure_future(self._outcome())
    cancellation = asyncio.ensure_future(cancelled.wait())
    try:
      await asyncio.wait({outcome, cancellation}, timeout=self._limits.job_seconds,
                         return_when=asyncio.FIRST_COMPLETED)
      if outcome.done():
        return outcome.result()
      self._signal(signal.SIGUSR1)
      await asyncio.wait({outcome}, timeout=STOP_SECONDS)
      if not outcome.done():
        self.kill()
        await outcome
      return {"status": 0} if cancelled.is_set() else self._timed_out()
    finally:
      for task in (outcome, cancellation):
        task.cancel()

  async def exited(self) -> None:
    """Waits until the worker has exited and no longer is `ready`."""
    await self._process.wait()
    self.ready = False

  def kill(self) -> None:
    """Kills the worker."""
    self._signal(signal.SIGKILL)

  async def close(self) -> None:
    """Ends the idle worker and waits for it."""
    if self._process is not None:
      if not self.ready:  # loading or dead
        self.kill()
      self.ready = False
      self._process.stdin.close()
      try:
        await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
      except TimeoutError:
        self.kill()
        await self._process.wait()

  def pid(self) -> int:
    """Returns the process id of the worker."""
    return self._process.pid

  async def _outcome(self) -> dict | None:
    while event := await self._event():
      if event["event"] == "done":
        return {key: value for key, value in event.items() if key != "event"}
      if event["event"] == "progress":
        self.progress = event["done"]
      else:
        self._phase = event["event"]
    self.ready = False
    await self._process.wait()
    if not self._phase:
      return None
    if self._phase == "reading":
      return {"status": 422, "error": "body", "reason": "crashed the reader", "cure": CONVERT}
    return {"status": 503, "error": "service", "reason": "the worker exited during the prediction, "
            "probably out of memory", "cure": SMALLER}

  async def _event(self) -> dict:
    """Returns the next event, or {} if the worker has exited."""
    line = await self._process.stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else {}

  def _signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      self._process.send_signal(number)

  def _timed_out(self) -> dict:
    limit = f"{self._limits.job_seconds:g} seconds"
    if self._phase == "predicting":
      return {"status": 504, "error": "service",
              "reason": f"the prediction took longer than {limit}", "cure": SMALLER}
    return {"status": 422, "error": "body", "reason": f"took longer than {limit} to read",
            "cure": CONVERT}
