"""The web process: listens at once, becomes ready with its worker, shuts down in order.

Runs uvicorn with `Protocol`, which adds JSON errors for invalid HTTP and closes idle connections.
It imports none of the libraries that read images or predict, and so needs a tenth of the worker's
memory.
"""

import asyncio
from collections.abc import Collection
import json
import logging
from pathlib import Path
import signal
import socket
import tempfile
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from condseg_jax.errors import InputError
from condseg_jax.serve.app import build_app
from condseg_jax.serve.device import Device
from condseg_jax.serve.device import worker_command
from condseg_jax.serve.hosts import Hosts
from condseg_jax.serve.queue import CLOSING_SECONDS
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.system.allocator import freeze_gc

# For a connection to send a complete request header, or to receive anything of its response.
IDLE_SECONDS = 30.0
# Both together remain below the usual limit of 1024 open files.
MAX_CONNECTIONS, BACKLOG = 600, 256
LOG = logging.getLogger("condseg_jax")


def serve(workdir: str, checkpoint: str, host: str, port: int, limits: Limits,
          allowed_hosts: Collection[str] = (), members: int = 0) -> None:
  """Serves a trained network until SIGTERM or SIGINT.

  Args:
    workdir: folder of the training run, or a bundle.
    checkpoint: `last`, `best` or a step.
    host: address to listen on.
    port: port to listen on; 0 for any free port.
    limits: of requests.
    allowed_hosts: names of the service besides `host`, see `hosts.Hosts`.
    members: number of members of an ensemble to use; 0 for all.

  Raises:
    InputError: the network cannot be loaded, the address cannot be used, or a name is invalid.
  """
  hosts = Hosts(host, allowed_hosts)
  # uvicorn raises the signal again after its shutdown.
  handlers = {number: signal.signal(number, lambda *_: None)
              for number in (signal.SIGTERM, signal.SIGINT)}
  for name in ("python_multipart", "uvicorn", "asyncio"):
    logging.getLogger(name).setLevel(logging.ERROR)  # no warning for every malformed request
  try:
    with _listen(host, port) as listener, tempfile.TemporaryDirectory(
        prefix="condseg-serve-", ignore_cleanup_errors=True) as folder:
      device = Device(worker_command(workdir, checkpoint, members), limits)
      asyncio.run(_serve(device, listener, limits, Path(folder), hosts))
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


class _Server(uvicorn.Server):
  """Closes the queue on a signal; uvicorn alone would first wait for all connections."""

  def __init__(self, config: uvicorn.Config, queue: Queue):
    super().__init__(config)
    self._queue, self._loop = queue, asyncio.get_running_loop()

  def handle_exit(self, sig: int, frame: FrameType | None) -> None:
    """Handles SIGTERM and SIGINT."""
    self._loop.call_soon_threadsafe(self._queue.close)
    super().handle_exit(sig, frame)


class Protocol(H11Protocol):
  """An HTTP connection with JSON errors, which gives way to others while it is idle."""

  def connection_made(self, transport: asyncio.Transport) -> None:
    """Starts the timeout of the first request."""
    super().connection_made(transport)
    self._dropped = False
    self._idle = self.loop.call_later(IDLE_SECONDS, self._drop_if_idle)
    self._stalled: asyncio.TimerHandle | None = None
    self._make_room()

  def connection_lost(self, exc: Exception | None) -> None:
    """Stops the timeouts, which would keep the connection in memory."""
    self._idle.cancel()
    self.resume_writing()
    super().connection_lost(exc)

  def pause_writing(self) -> None:
    """Starts the timeout of a receiver that reads nothing."""
    super().pause_writing()
    self._stalled = self.loop.call_later(IDLE_SECONDS, self._drop)

  def resume_writing(self) -> None:
    """Stops the timeout of a receiver that reads nothing."""
    super().resume_writing()
    if self._stalled is not None:
      self._stalled.cancel()

  def send_400_response(self, _msg: str) -> None:
    """Answers invalid HTTP with the JSON error of the service."""
    error = HttpError(400, "request", "is not valid HTTP",
                      "check its Content-Length or Transfer-Encoding")
    body = json.dumps(error.to_json()).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))),
               ("Connection", "close")]
    if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
      for event in (h11.Response(status_code=400, headers=headers, reason="Bad Request"),
                    h11.Data(data=body), h11.EndOfMessage()):
        self.transport.write(self.conn.send(event))
    self.transport.close()

  def on_response_complete(self) -> None:
    """Starts the timeout of the next request."""
    super().on_response_complete()
    self._idle.cancel()
    self._idle = self.loop.call_later(IDLE_SECONDS, self._drop_if_idle)

  def _make_room(self) -> None:
    """Drops the connection that has been idle for longest, if there are too many."""
    others = [c for c in self.connections
              if isinstance(c, Protocol) and c is not self and not c._dropped]
    idle = [c for c in others if c._is_idle()]
    if len(others) + 1 >= MAX_CONNECTIONS and idle:
      min(idle, key=lambda c: c._idle.when())._drop()

  def _is_idle(self) -> bool:
    """Whether there is no request, or it has been answered (even before its body is complete)."""
    return self.cycle is None or self.cycle.response_complete or (
        self.cycle.response_started and self.cycle.more_body)

  def _drop_if_idle(self) -> None:
    if self._is_idle():
      self._drop()

  def _drop(self) -> None:
    """Closes the connection at once, even if the receiver has not read all of a response."""
    self._dropped = True
    self.transport.abort()


async def _serve(device: Device, listener: socket.socket, limits: Limits, folder: Path,
                 hosts: Hosts) -> None:
  freeze_gc()
  queue = Queue(device, limits)
  config = uvicorn.Config(
      build_app(queue, limits, folder, hosts), loop="asyncio", http=Protocol, ws="none",
      lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
      limit_concurrency=MAX_CONNECTIONS, backlog=BACKLOG,
      timeout_graceful_shutdown=round(CLOSING_SECONDS) + 2)
  server = _Server(config, queue)
  web = asyncio.create_task(server.serve([listener]))
  host, port = listener.getsockname()[:2]
  LOG.info("listening on http://%s:%d; loading the network", f"[{host}]" if ":" in host else host,
           port)
  work = asyncio.create_task(queue.run())
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


def _listen(host: str, port: int) -> socket.socket:
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=BACKLOG)
  except OSError as error:
    reason = str(error.strerror).partition(" (")[0]
    raise InputError(f"host {host}, port {port}", f"cannot listen: {reason}",
                     "choose another port or an address of this machine", usage=True) from error
