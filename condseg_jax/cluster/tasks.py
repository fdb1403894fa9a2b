"""Runs a function on many cases: one after the other in this process, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import itertools
import os
import sys
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING
from typing import TypeVar
import uuid

from condseg_jax.cluster.worker import attempt
from condseg_jax.cluster.worker import Report
from condseg_jax.cluster.worker import Requirements
from condseg_jax.cluster.worker import versions
from condseg_jax.cluster.worker import work
from condseg_jax.errors import InputError

if TYPE_CHECKING:  # an extra
  from distributed import Client
  from distributed import Future

POLL_SECONDS = 1.0  # after which new workers are looked for
GPU = "GPU"  # the resource of a worker that has one

T = TypeVar("T")


class Outcome(NamedTuple):
  """What a task comes to.

  Attributes:
    number: of the task, from 0.
    value: what its function returned; None with an error.
    error: InputError, OSError or MemoryError that it raised; InputError if it ends its workers.
  """

  number: int
  value: Any = None
  error: Exception | None = None


class Cluster:
  """A connection to a Dask scheduler; see `connect.connected`.

  Args:
    client: the connection.
    address: of the scheduler, for messages.
  """

  def __init__(self, client: Client, address: str) -> None:
    self._client, self._address = client, address

  def each(self, function: Callable, tasks: Iterable[Sequence], names: Sequence[str], *,
           device: bool, shared: Iterable[str | os.PathLike]) -> Iterator[Outcome]:
    """See `each`."""
    required = Requirements(os.getcwd(), versions(), tuple(os.fspath(folder) for folder in shared))
    token, label = uuid.uuid4().hex, function.__name__.strip("_")
    waiting = enumerate(tasks)
    running: dict[Future, int] = {}
    try:
      while True:
        # A worker gets its next task when it has finished one: tasks that wait in a worker would
        # count as failed with the one that ends it.
        workers, resources = self._workers(device)
        for number, arguments in itertools.islice(waiting, max(0, max(1, workers) - len(running))):
          future = self._client.submit(work, required, function, arguments, pure=False,
                                       key=f"{label}-{number}-{token}", resources=resources)
          running[future] = number
        if not running:
          return
        for future in self._finished(running):
          number = running.pop(future)
          yield self._outcome(future, number, names[number])
          future.release()
    finally:
      with contextlib.suppress(Exception):  # if the connection is lost, there is nothing to cancel
        self._client.cancel(list(running), force=True)

  def _workers(self, device: bool) -> tuple[int, dict[str, int] | None]:
    """Returns the number of workers for a task, and the resources that it asks for."""
    try:
      workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
    except Exception as error:  # of many kinds, by the state of the connection
      raise self._lost() from error
    with_gpu = [worker for worker in workers if worker.get("resources", {}).get(GPU)]
    if device and with_gpu:
      return len(with_gpu), {GPU: 1}
    return len(workers), None

  def _finished(self, running: Iterable[Future]) -> list[Future]:
    """Returns the tasks that have finished, after waiting for one or for `POLL_SECONDS`."""
    from distributed import wait
    from distributed.client import CancelledError  # type: ignore[attr-defined]
    try:
      with self._client.as_current():
        wait(list(running), timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
    except TimeoutError:
      pass
    except CancelledError:
      raise self._lost() from None
    return [future for future in running if future.done()]

  def _outcome(self, future: Future, number: int, name: str) -> Outcome:
    from distributed.scheduler import KilledWorker
    if future.status in ("cancelled", "lost"):
      raise self._lost()
    if future.status == "error":
      error = future.exception()
      if isinstance(error, KilledWorker):
        return Outcome(number, error=InputError(
            name, f"ended the process of its worker {error.allowed_failures + 1} times",
            "see the log of the worker; its memory may be too small"))
      if isinstance(error, ModuleNotFoundError):
        raise InputError(f"workers of {self._address}", str(error),
                         "install condseg_jax there, of the same version", usage=True) from error
      raise error
    report: Report = future.result()
    if report.unfit is not None:
      raise report.unfit
    if report.said:
      say(report.said.rstrip("\n"))
    return Outcome(number, report.value, report.error)

  def _lost(self) -> InputError:
    return InputError(self._address, "the scheduler has ended, or the connection to it",
                      "start it again; finished cases are kept")


def each(cluster: Cluster | None, function: Callable, tasks: Iterable[Sequence],
         names: Sequence[str], *, device: bool = False,
         shared: Iterable[str | os.PathLike] = ()) -> Iterator[Outcome]:
  """Calls a function for every task.

  Args:
    cluster: where; None for this process.
    function: at the top level of a module.
    tasks: arguments of each call, which are small: paths and settings.
    names: name of each task, for messages.
    device: whether a task needs the device of a worker.
    shared: folders that all machines must see.

  Yields:
    The outcomes, without a cluster in the order of the tasks, else as they complete.

  Raises:
    InputError: the cluster is lost, or differs from this machine.
  """
  if cluster is not None:
    yield from cluster.each(function, tasks, names, device=device, shared=shared)
    return
  for number, arguments in enumerate(tasks):
    yield Outcome(number, *attempt(function, arguments))


def in_order(pairs: Iterable[tuple[int, T]]) -> Iterator[T]:
  """Yields values by their numbers 0, 1, …, each as soon as those before it have come."""
  early: dict[int, T] = {}
  following = 0
  for number, value in pairs:
    early[number] = value
    while following in early:
      yield early.pop(following)
      following += 1


def say(text: str, stream=None) -> None:
  """Prints lines above a progress bar; on the standard error stream by default."""
  import tqdm
  stream = stream or sys.stderr
  tqdm.tqdm.write(text, file=stream)
  stream.flush()
