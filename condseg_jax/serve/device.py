"""The web process's side of the worker: starts it, orders, stops what is not wanted any more."""

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

STOP_SECONDS = 10.0  # that a worker has to come to the next window
MAX_LINE = 1 << 24


def worker_command(workdir: str, checkpoint: str) -> tuple[str, ...]:
  """What starts the worker of a run."""
  # -P: a file that lies in the folder it was started from is no module.
  return sys.executable, "-P", "-m", "condseg_jax.serve.worker", str(workdir), checkpoint


class Device:
  """The one worker, which is started again when it ends.

  Args:
    command: starts the worker, see `worker_command`.
    limits: of orders.

  Attributes:
    table: the classes of its network; None before it was ready for the first time.
    fusions: the ways in which its classes can share voxels.
    ready: whether it takes orders.
  """

  def __init__(self, command: Sequence[str], limits: Limits):
    self._command, self._limits = command, limits
    self._phase = ""  # of the order: reading, predicting
    self._process: asyncio.subprocess.Process | None = None
    self.table: ClassTable | None = None
    self.fusions: tuple[str, ...] = ()
    self.ready = False

  async def start(self) -> None:
    """Starts the worker and waits until the network is loaded and compiled.

    Raises:
      InputError: the network cannot be loaded.
    """
    self._process = await asyncio.create_subprocess_exec(
        *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE, start_new_session=True)  # signals of the terminal are not for it
    told = await self._event()
    if told.get("event") == "failed":
      await self._process.wait()
      raise InputError(told["subject"], told["reason"], told["cure"], usage=told["usage"])
    if told.get("event") != "ready":
      code = await self._process.wait()
      raise InputError("worker", f"ended with code {code} while the network was loaded",
                       "the lines above say why")
    self.table, self.fusions = ClassTable.from_json(told["table"]), tuple(told["fusions"])
    self.ready = True

  async def run(self, folder: Path, order: PredictRequest, unwanted: asyncio.Event) -> dict | None:
    """Has an order carried out.

    Args:
      folder: holds the body; the answer is written there.
      order: what is asked for.
      unwanted: stops it when set.

    Returns:
      The outcome of `job.work`; also of status 0 if it was stopped, 422 or 504 if it took too long,
      422 or 503 if the worker ended over it. What goes wrong while a body is read is the body's
      fault. None if the worker had ended before it took the order. When this returns the worker
      does not touch the folder any more.
    """
    self._phase = ""
    line = {"folder": str(folder), "order": dataclasses.asdict(order),
            "limits": dataclasses.asdict(self._limits)}
    with contextlib.suppress(ConnectionError):
      self._process.stdin.write(json.dumps(line).encode() + b"\n")
      await self._process.stdin.drain()
    done = asyncio.ensure_future(self._outcome())
    stopper = asyncio.ensure_future(unwanted.wait())
    try:
      await asyncio.wait({done, stopper}, timeout=self._limits.job_seconds,
                         return_when=asyncio.FIRST_COMPLETED)
      if done.done():
        return done.result()
      self._signal(signal.SIGUSR1)
      await asyncio.wait({done}, timeout=STOP_SECONDS)
      if not done.done():
        self.kill()
        await done
      return {"status": 0} if unwanted.is_set() else self._too_long()
    finally:
      for task in (done, stopper):
        task.cancel()

  def kill(self) -> None:
    """Ends the worker at once."""
    self._signal(signal.SIGKILL)

  async def close(self) -> None:
    """Ends the worker, which has nothing to do."""
    if self._process is not None:
      if not self.ready:  # loading, or dead
        self.kill()
      self.ready = False
      self._process.stdin.close()
      try:
        await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
      except TimeoutError:
        self.kill()
        await self._process.wait()

  def pid(self) -> int:
    """Of the worker."""
    return self._process.pid

  async def _outcome(self) -> dict | None:
    while told := await self._event():
      if told["event"] == "done":
        return {key: value for key, value in told.items() if key != "event"}
      self._phase = told["event"]
    self.ready = False
    await self._process.wait()
    if not self._phase:
      return None
    if self._phase == "reading":
      return {"status": 422, "error": "body", "reason": "makes its reader crash",
              "cure": "convert it again, e.g. with dcm2niix"}
    return {"status": 503, "error": "service", "reason": "the prediction ended before its time, "
            "most likely for want of memory", "cure": "send a smaller volume, or ask for fewer "
            "classes"}

  async def _event(self) -> dict:
    """The next event; {} when the worker has ended."""
    line = await self._process.stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else {}

  def _signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      self._process.send_signal(number)

  def _too_long(self) -> dict:
    told = f"{self._limits.job_seconds:g} seconds"
    if self._phase == "predicting":
      return {"status": 504, "error": "service", "reason": f"the prediction takes longer than "
              f"{told}", "cure": "send a smaller volume, or ask for fewer classes"}
    return {"status": 422, "error": "body", "reason": f"takes longer than {told} to read",
            "cure": "convert it again, e.g. with dcm2niix"}
