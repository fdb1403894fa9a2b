"""Several processes that train one network: how they find and what they tell each other."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import logging
import re

import jax
from jax.experimental import multihost_utils
import numpy as np

from condseg_jax.errors import InputError


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
  """Makes this process one of a cluster; what is None, jax asks the cluster for.

  It knows SLURM, Open MPI, Cloud TPU (with and without GKE) and, with the package `kubernetes`,
  indexed jobs of Kubernetes. From then on only the first process reports progress; all report
  errors.

  Args:
    coordinator: HOST:PORT of the first process, reachable from all.
    processes: their number.
    process_id: of this one, from 0.

  Raises:
    InputError: there is no such cluster, or the others did not come.
  """
  if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
    raise InputError("--coordinator", f"{coordinator!r} is not HOST:PORT", "e.g. node1:12345",
                     usage=True)
  try:
    jax.distributed.initialize(coordinator, processes, process_id)
  except (ValueError, RuntimeError, OSError) as error:
    told = {"--coordinator": coordinator, "--processes": processes, "--process_id": process_id}
    missing = [flag for flag, value in told.items() if value is None]
    if isinstance(error, ValueError) and missing:
      raise InputError("--distributed", "found no cluster (SLURM, Open MPI, Cloud TPU, Kubernetes)",
                       f"give {', '.join(missing)}", usage=True) from error
    raise InputError("--distributed", str(error).strip().splitlines()[0],
                     "check --coordinator, --processes and --process_id, and that all processes "
                     "run", usage=isinstance(error, ValueError)) from error
  if jax.process_index() > 0:
    logging.getLogger("condseg_jax").setLevel(logging.WARNING)


def is_first() -> bool:
  """Whether this process reports progress for all."""
  return jax.process_index() == 0


def share(items: Sequence) -> Sequence:
  """This process's part of what the processes do once between them."""
  return items[jax.process_index()::jax.process_count()]


def gather(rows: Sequence) -> list:
  """The rows of all processes, values as of JSON, the same list in each. All must call it."""
  if jax.process_count() == 1:
    return list(rows)
  text = np.frombuffer(json.dumps(list(rows)).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(text.size, np.int32))
  padded = np.pad(text, (0, int(lengths.max()) - text.size))
  texts = multihost_utils.process_allgather(padded)
  return [row for text, n in zip(texts, lengths, strict=True)
          for row in json.loads(text[:n].tobytes())]


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
  """The other processes enter when the first has left, to find what it has put on a shared disk."""
  first = jax.process_index() == 0
  if not first:
    multihost_utils.sync_global_devices("first process first")
  try:
    yield
  finally:
    if first and jax.process_count() > 1:
      multihost_utils.sync_global_devices("first process first")
