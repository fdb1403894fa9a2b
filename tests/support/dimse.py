"""A DICOM node in the process of the test, and the programs of DCMTK as its peers."""

import asyncio
from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import threading

import pytest

from condseg_jax.serve.dimse.settings import Node
from condseg_jax.serve.dimse.settings import Peer
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import PredictRequest
from support.service import Inside
from support.service import LIMITS
from support.waiting import free_port
from support.waiting import listens
from support.waiting import PATIENCE
from support.waiting import until

AET, SENDER, RECEIVER = "CONDSEG", "SENDER", "RECEIVER"


def make_node(spool: Path, receiver: int, **changes) -> Node:
  """A node at a free port, whose results go to a port of this machine."""
  return Node(AET, free_port(), "127.0.0.1", (Peer(SENDER, "127.0.0.1"),
                                              Peer("ORTHANC", "localhost")),
              Peer(RECEIVER, "127.0.0.1", receiver), spool, 30.0,
              PredictRequest(output="dicom_seg"))._replace(**changes)


def write_config(node: Node, path: Path) -> None:
  """Writes what `read_node` reads as this node."""
  path.write_text(json.dumps({
      "spool": str(node.spool), "peers": [{"aet": p.aet, "host": p.host} for p in node.peers],
      "send_to": node.send_to._asdict(), "listen": node.listen,
      "quiet_seconds": node.quiet_seconds}))


@contextlib.contextmanager
def running(node: Node, predictor, folder: Path, device=None) -> Iterator[None]:
  """Runs a node, with a queue of its own, in a thread."""
  from condseg_jax.serve.dimse.runner import Runner
  from condseg_jax.serve.dimse.spool import Spool
  loop = asyncio.new_event_loop()

  async def work():
    queue = Queue(device or Inside(predictor, LIMITS), LIMITS)
    runner = Runner(node, Spool(node.spool, node.quiet_seconds), queue, folder)
    tasks = [asyncio.create_task(one) for one in (queue.run(), runner.run())]
    try:
      await asyncio.gather(*tasks)
    finally:
      for one in tasks:
        one.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)

  task = loop.create_task(work())

  def run():
    asyncio.set_event_loop(loop)
    loop.run_until_complete(asyncio.wait({task}))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

  thread = threading.Thread(target=run)
  thread.start()
  try:
    until(lambda: listens(node.port) or task.done())
    yield
  finally:
    if not loop.is_closed():
      loop.call_soon_threadsafe(task.cancel)
    thread.join()
  if not task.cancelled():
    task.result()  # raises


def program(name: str) -> str:
  """The path of a program of DCMTK; the test is skipped where it is missing.

  pynetdicom installs programs of the same names beside Python.
  """
  folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
  others = [folder for folder in folders if Path(folder) != Path(sys.executable).parent]
  path = shutil.which(name, path=os.pathsep.join(others))
  if path is None:
    pytest.skip("dcmtk is not installed (Debian package)")
  return path


def storescu(port: int, *paths: Path, called: str = AET, calling: str = SENDER,
             flags: tuple[str, ...] = ()) -> subprocess.Popen:
  """Starts to send files in one association."""
  return subprocess.Popen([program("storescu"), *flags, "-aec", called, "-aet", calling,
                           "127.0.0.1", str(port), *map(str, paths)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, encoding="utf-8")


def ended(process: subprocess.Popen) -> int:
  """Waits for a program and returns its exit code."""
  process.communicate(timeout=PATIENCE)
  return process.returncode


@contextlib.contextmanager
def storescp(port: int, folder: Path, flags: tuple[str, ...] = ()) -> Iterator[None]:
  """A receiver that writes each object that arrives to a file of its own, even if it is equal."""
  folder.mkdir(exist_ok=True)
  process = subprocess.Popen([program("storescp"), *flags, "-aet", RECEIVER,
                              "--unique-filenames", "-od", str(folder), str(port)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    until(lambda: listens(port))
    yield
  finally:
    process.kill()
    process.wait()
