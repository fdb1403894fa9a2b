"""Connects to a cluster: starts one, or finds the scheduler of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import contextlib
import logging
import sys
from typing import Any
from typing import TYPE_CHECKING
import warnings

from condseg_jax.cluster import start
from condseg_jax.cluster.address import parse
from condseg_jax.cluster.tasks import Cluster
from condseg_jax.errors import InputError

if TYPE_CHECKING:  # an extra
  from distributed import Client
  from distributed import SpecCluster

CONNECT_SECONDS = 8.0
# What scheduler, workers and client have to agree in, of the packages that Dask compares.
AGREE = ("dask", "distributed", "cloudpickle")


@contextlib.contextmanager
def connected(text: str) -> Iterator[Cluster | None]:
  """Connects to a cluster.

  Args:
    text: see `address.parse`; "" for none, with which nothing of Dask is imported.

  Yields:
    The cluster; None for none.

  Raises:
    InputError: not an address, no scheduler, Dask is not installed, or of another version there.
  """
  if not text:
    yield None
    return
  address = parse(text)
  try:
    import distributed
  except ImportError as error:
    raise InputError(text, "needs Dask", 'pip install "condseg-jax[cluster]"',
                     usage=True) from error
  with contextlib.ExitStack() as opened:
    opened.enter_context(_silent())
    target: SpecCluster | str
    if address.kind == "local":
      target = opened.enter_context(start.local(int(address.value)))
    elif address.kind == "slurm":
      target = opened.enter_context(start.slurm(address.value))
    else:
      target = address.value
    try:
      if address.kind == "scheduler":
        asyncio.run(asyncio.wait_for(_greet(address.value), CONNECT_SECONDS))
      client = distributed.Client(target, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # of many kinds, by what answers there, if anything
      reason = str(error).strip().partition("\n")[0] or "it does not answer"
      raise InputError(text, f"no Dask scheduler can be reached: {reason}",
                       "check address, port, TLS and firewall") from error
    opened.enter_context(client)
    check_versions(client, text)
    if address.kind != "local" and not client.nthreads():
      print(f"waiting for a worker of {text}", file=sys.stderr, flush=True)
    yield Cluster(client, text)


async def _greet(address: str) -> None:
  """Exchanges a message with a scheduler: a client would wait for ever for one that is silent."""
  from distributed.comm import connect
  from distributed.security import Security
  arguments = Security().get_connection_args("client")
  comm = await connect(address, timeout=CONNECT_SECONDS, **arguments)
  try:
    await comm.write({"op": "identity", "n_workers": 0, "reply": True})
    await comm.read()
  finally:
    comm.abort()


def check_versions(client: Client, address: str) -> None:
  """Raises InputError if scheduler or workers have other versions of Python or Dask.

  Versions on which results depend are compared with every task, see `worker.work`.
  """
  try:
    found: Any = client.get_versions()
  except Exception as error:
    raise InputError(address, f"does not tell its versions ({type(error).__name__})",
                     "install the same versions on all machines") from error
  own = _versions(found["client"])
  others = {"the scheduler": found["scheduler"],
            **{f"worker {name}": told for name, told in found["workers"].items()}}
  for who, told in others.items():
    for name, version in _versions(told).items():
      if version != own[name]:
        raise InputError(address, f"{who} has {name} {version}, but this machine {own[name]}",
                         "install the same versions on all machines", usage=True)


def _versions(told: dict) -> dict[str, str]:
  packages = told["packages"]
  return {"Python": ".".join(packages["python"].split(".")[:2]),
          **{name: str(packages.get(name)) for name in AGREE}}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Silences Dask, which reports what this package reports in one line, at length."""
  names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
  before = {name: logging.getLogger(name).level for name in names}  # several have their own
  for name in names:
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", module=r"distributed\..*")
      warnings.filterwarnings("ignore", message=".*[Mm]ismatched versions.*")
      yield
  finally:
    for name, level in before.items():
      logging.getLogger(name).setLevel(level)
