"""The whole service as a process, and what is sent to it byte by byte."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import subprocess
import sys

import httpx2
import psutil

from support.waiting import until


@contextlib.contextmanager
def serving(workdir: Path, folder: Path, *flags: str
            ) -> Iterator[tuple[subprocess.Popen, str]]:
  """Starts a service; yields its process and its address.

  Args:
    workdir: of the network.
    folder: for what it writes: `service.log`, and the folder of its requests.
    flags: of the command, besides.
  """
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2",
                 "TMPDIR": str(folder)}
  log = folder / "service.log"
  with log.open("w") as stream:
    process = subprocess.Popen(
        [sys.executable, "-m", "condseg_jax.cli.serve", f"--workdir={workdir}", "--port=0", *flags],
        stderr=stream, env=environment)
  if hasattr(os, "sched_setaffinity"):  # all cores: a worker of the tests has some of them
    os.sched_setaffinity(process.pid, range(os.cpu_count()))
  try:
    until(lambda: "http:" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    address = next(word.rstrip(";") for word in log.read_text().split()
                   if word.startswith("http:"))
    until(lambda: httpx2.get(f"{address}/health").status_code == 200)
    yield process, address
  finally:
    process.kill()
    process.wait()


def worker(process: subprocess.Popen) -> psutil.Process:
  """The process that predicts."""
  (found,) = psutil.Process(process.pid).children()
  return found


def head(size: int) -> bytes:
  """The head of a request with a body of `size` bytes."""
  return f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()


def resident(process: subprocess.Popen) -> list[int]:
  """Bytes in memory of the web process and of its worker."""
  return [one.memory_info().rss for one in (psutil.Process(process.pid), worker(process))]
