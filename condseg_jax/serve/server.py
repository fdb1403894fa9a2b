"""The web process: listens at once, is ready when its worker is, ends in order.

It imports none of the libraries that read images or predict: a tenth of the worker's memory.
"""

import asyncio
import logging
from pathlib import Path
import signal
import socket
import tempfile

import uvicorn

from condseg_jax.allocator import settle
from condseg_jax.errors import InputError
from condseg_jax.serve.app import build_app
from condseg_jax.serve.device import Device
from condseg_jax.serve.device import worker_command
from condseg_jax.serve.limits import Limits
from condseg_jax.serve.protocol import Protocol
from condseg_jax.serve.queue import CLOSING_SECONDS
from condseg_jax.serve.queue import Queue

MAX_CONNECTIONS = 900  # below the 1024 open files that systems grant
LOG = logging.getLogger("condseg_jax")


class _Server(uvicorn.Server):
  """Tells the queue of a signal when it comes; uvicorn tells when all connections are closed."""

  def __init__(self, config: uvicorn.Config, queue: Queue):
    super().__init__(config)
    self._queue, self._loop = queue, asyncio.get_running_loop()

  def handle_exit(self, sig, frame) -> None:
    self._loop.call_soon_threadsafe(self._queue.close)
    super().handle_exit(sig, frame)


def serve(workdir: str, checkpoint: str, host: str, port: int, limits: Limits) -> None:
  """Serves a trained network until SIGTERM or SIGINT.

  Args:
    workdir, checkpoint: of the run, as of `predictor.load`.
    host, port: to listen on; a free port when 0.
    limits: of requests.

  Raises:
    InputError: the network cannot be loaded, or the address not be used.
  """
  # uvicorn raises a signal again when it has closed.
  before = {number: signal.signal(number, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT)}
  for name in ("python_multipart", "uvicorn", "asyncio"):
    logging.getLogger(name).setLevel(logging.ERROR)  # of every broken request a warning, else
  try:
    with _bound(host, port) as listener, tempfile.TemporaryDirectory(
        prefix="condseg-serve-", ignore_cleanup_errors=True) as folder:
      device = Device(worker_command(workdir, checkpoint), limits)
      asyncio.run(_serve(device, listener, limits, Path(folder)))
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


async def _serve(device: Device, listener: socket.socket, limits: Limits, folder: Path) -> None:
  settle()
  queue = Queue(device, limits)
  config = uvicorn.Config(
      build_app(queue, limits, folder), loop="asyncio", http=Protocol, ws="none", lifespan="off",
      log_config=None, access_log=False, server_header=False, proxy_headers=False,
      limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=round(CLOSING_SECONDS) + 2)
  server = _Server(config, queue)
  web = asyncio.create_task(server.serve([listener]))
  work = asyncio.create_task(_work(queue, listener))
  try:
    await asyncio.wait({web, work}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await web
    if work.done():
      work.result()  # raises
  finally:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await device.close()


async def _work(queue: Queue, listener: socket.socket) -> None:
  host, port = listener.getsockname()[:2]
  LOG.info("listening on http://%s:%d; loading the network", f"[{host}]" if ":" in host else host,
           port)
  run = asyncio.create_task(queue.run())
  try:
    while not queue.device.ready and not run.done():
      await asyncio.sleep(0.05)
    if not run.done():
      LOG.info("ready")
    await run
  finally:
    run.cancel()


def _bound(host: str, port: int) -> socket.socket:
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=512)
  except OSError as error:
    told = str(error.strerror).partition(" (")[0]
    raise InputError(f"--host={host} --port={port}", f"cannot be listened on: {told}",
                     "choose another port or an address of this machine", usage=True) from error
