"""The web process: listens at once, becomes ready with its worker, shuts down in order.

Runs uvicorn with `Protocol`, which adds JSON errors for invalid HTTP and closes idle connections.
It imports none of the libraries that read images or predict, and so needs a tenth of the worker's
memory.
"""

import asyncio
from collections.abc import Coroutine
import contextlib
import json
import logging
from pathlib import Path
import signal
import socket
import ssl
import tempfile
from types import FrameType
from typing import NamedTuple

import h11
from starlette.applications import Starlette
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from condseg_jax.dicomweb.server import Server
from condseg_jax.errors import InputError
from condseg_jax.serve.app import build_app
from condseg_jax.serve.audit import Audit
from condseg_jax.serve.device import Device
from condseg_jax.serve.device import worker_command
from condseg_jax.serve.dimse.settings import Node
from condseg_jax.serve.guard import Access
from condseg_jax.serve.monai.datastore import Datastore
from condseg_jax.serve.queue import CLOSING_SECONDS
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.system.allocator import freeze_gc
from condseg_jax.system.lock import held

# For a connection to send a complete request header, or to receive anything of its response.
IDLE_SECONDS = 30.0
# Both together remain below the usual limit of 1024 open files.
MAX_CONNECTIONS, BACKLOG = 600, 256
LOG = logging.getLogger("condseg_jax")


class Address(NamedTuple):
  """Where the service listens.

  Attributes:
    host: address or name.
    port: 0 for any free port.
    tls: None for HTTP without encryption.
  """

  host: str
  port: int
  tls: ssl.SSLContext | None = None


class Connections(NamedTuple):
  """Where images come from besides the bodies of requests.

  Attributes:
    datastore: folder of images for clients of MONAI Label.
    dicomweb: server whose series requests may name.
    node: the DICOM node to be.
  """

  datastore: Datastore | None = None
  dicomweb: Server | None = None
  node: Node | None = None


def serve(workdir: str, checkpoint: str, address: Address, limits: Limits,
          connections: Connections, access: Access, members: int = 0) -> None:
  """Serves a trained network until SIGTERM or SIGINT.

  Args:
    workdir: folder of the training run, or a bundle.
    checkpoint: `last`, `best` or a step.
    address: where it listens.
    limits: of requests.
    connections: where images come from besides the bodies of requests.
    access: who may ask.
    members: number of members of an ensemble to use; 0 for all.

  Raises:
    InputError: the network cannot be loaded, an address cannot be used, or another process holds
      the spool of the node.
  """
  node = connections.node
  # uvicorn raises the signal again after its shutdown.
  handlers = {number: signal.signal(number, lambda *_: None)
              for number in (signal.SIGTERM, signal.SIGINT)}
  for name in ("python_multipart", "uvicorn", "asyncio"):
    logging.getLogger(name).setLevel(logging.ERROR)  # no warning for every malformed request
  try:
    with _listen(address.host, address.port) as listener, tempfile.TemporaryDirectory(
        prefix="condseg-serve-", ignore_cleanup_errors=True) as folder, (
        held(node.spool) if node else contextlib.nullcontext()):
      command = worker_command(workdir, checkpoint, members, volumes=any(connections))
      queue = Queue(Device(command, limits), limits)
      app = build_app(queue, limits, Path(folder), access, connections.datastore,
                      connections.dicomweb)
      work = _node_work(node, queue, Path(folder), access.audit)
      asyncio.run(_serve(queue, listener, address.tls, app, work))
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


def _node_work(node: Node | None, queue: Queue, folder: Path,
               audit: Audit | None) -> Coroutine[None, None, None] | None:
  """Returns the work of a DICOM node; pynetdicom is imported only if there is one."""
  if node is None:
    return None
  from condseg_jax.serve.dimse.runner import Runner
  from condseg_jax.serve.dimse.spool import Spool
  return Runner(node, Spool(node.spool, node.quiet_seconds), queue, folder, audit).run()


async def _serve(queue: Queue, listener: socket.socket, tls: ssl.SSLContext | None,
                 app: Starlette, node: Coroutine[None, None, None] | None) -> None:
  freeze_gc()
  config = uvicorn.Config(
      app, loop="asyncio", http=Protocol, ws="none",
      lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
      limit_concurrency=MAX_CONNECTIONS, backlog=BACKLOG,
      # Longer than clients keep an idle connection, which else is sometimes closed while they send
      # a request: uvicorn's default of 5 s is also that of httpx.
      timeout_keep_alive=round(IDLE_SECONDS),
      timeout_graceful_shutdown=round(CLOSING_SECONDS) + 2,
      ssl_context_factory=(lambda _config, _default: tls) if tls else None)
  server = _Server(config, queue)
  web = asyncio.create_task(server.serve([listener]))
  host, port = listener.getsockname()[:2]
  LOG.info("listening on %s://%s:%d; loading the network", "https" if tls else "http",
           f"[{host}]" if ":" in host else host, port)
  tasks = [asyncio.create_task(work) for work in (queue.run(), node) if work is not None]
  try:
    await asyncio.wait({web, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await web
    for task in tasks:
      if task.done():
        task.result()  # raises
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await queue.device.close()


def _listen(host: str, port: int) -> socket.socket:
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=BACKLOG)
  except OSError as error:
    reason = str(error.strerror).partition(" (")[0]
    raise InputError(f"host {host}, port {port}", f"cannot listen: {reason}",
                     "choose another port or an address of this machine", usage=True) from error
