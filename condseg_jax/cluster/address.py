"""Addresses of clusters: `local:N`, `tcp://HOST[:PORT]`, `tls://HOST[:PORT]`, `slurm:FILE.yaml`."""

import re
from typing import NamedTuple

from condseg_jax.errors import InputError

PORT = 8786  # of a Dask scheduler
MOST = 1024  # processes on one machine
FORMS = "local:N, tcp://SCHEDULER[:PORT], tls://SCHEDULER[:PORT] or slurm:FILE.yaml"


class Address(NamedTuple):
  """Where tasks run.

  Attributes:
    kind: `local`, `scheduler` or `slurm`.
    value: number of processes, address of the scheduler with its port, or the file.
  """

  kind: str
  value: str


def parse(text: str) -> Address:
  """Parses an address.

  Raises:
    InputError: it is of another form.
  """
  if found := re.fullmatch(r"local:(\d{1,6})", text):
    if not 1 <= int(found[1]) <= MOST:
      raise InputError(text, f"has a number of processes outside 1 to {MOST}", "e.g. local:4",
                       usage=True)
    return Address("local", found[1])
  host = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]"
  if found := re.fullmatch(rf"(tcp|tls)://({host})(?::(\d{{1,5}}))?/?", text):
    port = int(found[3] or PORT)
    if not 1 <= port <= 65535:
      raise InputError(text, f"has the port {port}", f"1 to 65535; {PORT} by default", usage=True)
    return Address("scheduler", f"{found[1]}://{found[2]}:{port}")
  if text.startswith("slurm:") and text.endswith((".yaml", ".yml")):
    return Address("slurm", text.removeprefix("slurm:"))
  raise InputError(text or "cluster", "is not the address of a cluster", FORMS, usage=True)
