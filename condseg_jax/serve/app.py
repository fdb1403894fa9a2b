"""The routes of the service.

    POST /predict   a volume in the body, a prediction in the response; see `request.PARAMETERS`
                    and `request.OUTPUTS`
    GET  /classes   names, values and colours of the classes, and presets
    GET  /health    200 if ready, else 503; number of places, of running and of waiting requests
    GET  /          a web page to upload volumes and view the result
"""

import asyncio
from collections.abc import Awaitable
from collections.abc import Callable
import json
import logging
from pathlib import Path
import tempfile
import time

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from starlette.types import Message
from starlette.types import Receive
from starlette.types import Scope
from starlette.types import Send

from condseg_jax.serve.hosts import Hosts
from condseg_jax.serve.queue import closing_error
from condseg_jax.serve.queue import loading_error
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import ANSWER
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import disk_error
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import read_request
from condseg_jax.serve.upload import Disconnected
from condseg_jax.serve.upload import Incoming
from condseg_jax.serve.upload import Uploads

BLOCK = 1 << 18  # bytes of a response that are sent at once
WEB = Path(__file__).parent / "web"
# Path → file in `WEB` and media type.
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
        **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in ("page", "viewer", "zip")}}
# No third-party content and no caching: the images are of patients.
HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
           "frame-ancestors 'none'", "Cache-Control": "no-store",
           "X-Content-Type-Options": "nosniff"}
LOG = logging.getLogger("condseg_jax")


def build_app(queue: Queue, limits: Limits, folder: Path, hosts: Hosts) -> Starlette:
  """Builds the application.

  Args:
    queue: runs the requests.
    limits: of requests.
    folder: folder in which each request gets a temporary folder.
    hosts: names of the service; requests for other hosts or from other sites are refused.
  """
  routes = [Route("/predict", Predict(queue, limits, folder), methods=["POST"]),
            Route("/classes", _classes(queue)), Route("/health", _health(queue)),
            *(Route(path, _page_file(*file)) for path, file in PAGE.items())]
  app = Starlette(
      routes=routes, middleware=[Middleware(_HostCheck, hosts, limits)], exception_handlers={
          HttpError: lambda _request, error: _error_response(error),
          HTTPException: lambda _request, error: _routing_error(error),
          Exception: lambda _request, _error: _internal_error()})
  app.router.redirect_slashes = False
  return app


class _HostCheck:
  """Middleware that answers requests which `Hosts.check` refuses."""

  def __init__(self, app: ASGIApp, hosts: Hosts, limits: Limits):
    self._app, self._hosts, self._limits = app, hosts, limits

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
      headers = Headers(scope=scope)
      try:
        self._hosts.check(scope["method"], headers)
      except HttpError as error:
        await _send_error(scope, error, Incoming(receive, headers, self._limits), send)
        return
    await self._app(scope, receive, send)


class Predict:
  """POST /predict as a separate ASGI application, which controls the transfer of its response.

  Args:
    queue: runs the requests.
    limits: of requests.
    folder: folder in which each request gets a temporary folder.
  """

  def __init__(self, queue: Queue, limits: Limits, folder: Path):
    self._queue, self._limits, self._folder = queue, limits, folder
    self._uploads = Uploads(limits)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Handles one request, see the ASGI specification."""
    request = Request(scope)
    incoming = Incoming(receive, request.headers, self._limits)
    start = time.monotonic()
    try:
      self._queue.check()
      accept = request.headers.get("accept", "*/*")
      wanted = read_request(request.query_params.multi_items(), accept, self._queue.device.table,
                            self._queue.device.fusions)
      with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # A slow sender or receiver occupies no place of the queue.
        with self._uploads.place(incoming):
          size = await incoming.save(folder / BODY)
        with self._queue.place():
          outcome = await _while_connected(receive, self._queue.predict(folder, wanted))
        if outcome["status"] != 200:
          raise HttpError(outcome["status"], outcome["error"], outcome["reason"], outcome["cure"])
        await self._send_answer(send, folder / ANSWER, outcome)
        LOG.info("predict: %d bytes, %s, %.1f s", size, wanted.output, time.monotonic() - start)
    except Disconnected:
      LOG.info("predict: client disconnected after %.1f s", time.monotonic() - start)
    except asyncio.CancelledError:  # by the server, at the end of its graceful shutdown
      response = _error_response(closing_error())
      response.headers["Connection"] = "close"
      await response(scope, receive, send)
    except OSError as error:
      LOG.exception("a request could not be written to disk")
      await _send_error(scope, disk_error(error), incoming, send)
    except HttpError as error:
      LOG.info("predict: %d", error.status)  # the text may quote file names of a patient
      await _send_error(scope, error, incoming, send)

  async def _send_answer(self, send: Callable, path: Path, outcome: dict) -> None:
    """Sends a file; gives up if the client receives it too slowly."""
    size = path.stat().st_size
    headers = {**HEADERS, "Content-Type": outcome["media"], "Content-Length": str(size)}
    if outcome["name"]:
      headers["Content-Disposition"] = f'attachment; filename="{outcome["name"]}"'
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    try:
      async with asyncio.timeout(self._limits.transfer_seconds(size)):
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        with path.open("rb") as stream:
          while block := stream.read(BLOCK):
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (TimeoutError, asyncio.CancelledError):  # the server closes an incomplete response
      LOG.info("predict: client receives too slowly")


async def _send_error(scope: Scope, error: HttpError, incoming: Incoming, send: Send) -> None:
  """Sends an error, and drains the rest of the body before the response ends."""
  async def send_and_drain(message: Message) -> None:
    if message["type"] == "http.response.body" and not incoming.ended:
      await send({**message, "more_body": True})
      await incoming.drain()
      message = {"type": "http.response.body", "body": b""}
    await send(message)

  response = _error_response(error)
  if not incoming.ended:
    response.headers["Connection"] = "close"
  await response(scope, incoming.drain, send_and_drain)


async def _while_connected(receive: Callable, work: Awaitable):
  """Returns the result of some work, which is cancelled if the client disconnects.

  Raises:
    Disconnected: the client has disconnected.
  """
  async def disconnect():
    while (await receive())["type"] != "http.disconnect":
      pass

  tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnect())]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not tasks[0].done():
      raise Disconnected
    return tasks[0].result()
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _classes(queue: Queue) -> Callable:
  async def classes(_request: Request) -> Response:
    table = queue.device.table
    if table is None:
      raise loading_error()
    entries = [{"name": c.name, "value": i + 1, "color": list(c.color)}
               for i, c in enumerate(table.classes)]
    presets = {name: list(members) for name, members in table.presets.items()}
    return _json(200, {"classes": entries, "presets": presets})
  return classes


def _health(queue: Queue) -> Callable:
  async def health(_request: Request) -> Response:
    ready = queue.device.ready
    return _json(200 if ready else 503, {
        "live": True, "ready": ready, "running": int(queue.running),
        "waiting": queue.taken - queue.running, "places": queue.places})
  return health


def _page_file(name: str, media: str) -> Callable:
  async def file(_request: Request) -> Response:
    return FileResponse(WEB / name, media_type=media, headers=HEADERS)
  return file


def _error_response(error: HttpError) -> Response:
  response = _json(error.status, error.to_json())
  if error.retry_after is not None:
    response.headers["Retry-After"] = str(error.retry_after)
  return response


def _routing_error(error: HTTPException) -> Response:
  response = _json(error.status_code, {
      "error": "address", "reason": error.detail.lower(),
      "cure": "use POST /predict, or GET /, /classes or /health"})
  response.headers.update(error.headers or {})
  return response


def _internal_error() -> Response:
  return _json(500, {"error": "service", "reason": "internal error", "cure": "see the service log"})


def _json(status: int, content: dict) -> Response:
  return Response(json.dumps(content) + "\n", status, HEADERS, "application/json")
