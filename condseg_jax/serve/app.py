"""The routes of the service.

    POST /predict   a volume in, an answer out; see `order.PARAMETERS` and `order.OUTPUTS`
    GET  /classes   names, values and colours of the classes, and presets
    GET  /health    200 when ready, else 503; places and how many are taken
    GET  /          a page to upload and look
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
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.responses import Response
from starlette.routing import Route

from condseg_jax.serve.queue import closing
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import ANSWER
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import no_disk
from condseg_jax.serve.request import read_request
from condseg_jax.serve.upload import Disconnected
from condseg_jax.serve.upload import Incoming

BLOCK = 1 << 18
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
        **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in ("page", "viewer", "zip")}}
# Nothing from elsewhere, and nothing kept: images are of patients.
HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
           "frame-ancestors 'none'", "Cache-Control": "no-store",
           "X-Content-Type-Options": "nosniff"}
LOG = logging.getLogger("condseg_jax")


def build_app(queue: Queue, limits: Limits, folder: Path) -> Starlette:
  """The application.

  Args:
    queue: in which requests wait for the device.
    limits: of bodies.
    folder: for the folders of requests.
  """
  routes = [Route("/predict", Predict(queue, limits, folder), methods=["POST"]),
            Route("/classes", _classes(queue)), Route("/health", _health(queue)),
            *(Route(path, _file(*told)) for path, told in PAGE.items())]
  return Starlette(routes=routes, exception_handlers={
      HttpError: _refuse, HTTPException: _no_route, Exception: _fail})


class Predict:
  """POST /predict, as an application of its own, since it ends when its answer is sent."""

  def __init__(self, queue: Queue, limits: Limits, folder: Path):
    self._queue, self._limits, self._folder = queue, limits, folder

  async def __call__(self, scope, receive: Callable, send: Callable) -> None:
    request = Request(scope)
    incoming = Incoming(receive, request.headers, self._limits)
    start = time.monotonic()
    try:
      with self._queue.place():
        accept = request.headers.get("accept", "*/*")
        order = read_request(request.query_params.multi_items(), accept,
                             self._queue.device.table, self._queue.device.fusions)
        with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as name:
          folder = Path(name)
          size = await incoming.save(folder / BODY)
          outcome = await _unless_gone(receive, self._queue.predict(folder, order))
          if outcome["status"] != 200:
            raise HttpError(outcome["status"], outcome["error"], outcome["reason"], outcome["cure"])
          await self._send(send, folder / ANSWER, outcome)
          LOG.info("predict: %d bytes, %s, %.1f s", size, order.output, time.monotonic() - start)
    except Disconnected:
      LOG.info("predict: the sender has gone after %.1f s", time.monotonic() - start)
    except asyncio.CancelledError:  # the server has waited long enough for its end
      response = _refuse(request, closing())
      response.headers["Connection"] = "close"
      await response(scope, receive, send)
    except OSError as error:
      LOG.exception("a request could not be written")
      await self._refuse(scope, _refuse(request, no_disk(error)), incoming, send)
    except HttpError as refusal:
      LOG.info("predict: %d", refusal.status)  # its words may be those of a patient's file
      await self._refuse(scope, _refuse(request, refusal), incoming, send)

  async def _refuse(self, scope, response: Response, incoming: Incoming, send: Callable) -> None:
    """Sends a refusal, and ends it when the rest of the body has come, or when that takes long."""
    async def lingering(message: dict) -> None:
      if message["type"] == "http.response.body" and not incoming.ended:
        await send({**message, "more_body": True})
        await incoming.drain()
        message = {"type": "http.response.body", "body": b""}
      await send(message)

    if not incoming.ended:
      response.headers["Connection"] = "close"
    await response(scope, incoming.drain, lingering)

  async def _send(self, send: Callable, path: Path, outcome: dict) -> None:
    """Sends a file, unless its receiver takes too long."""
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
    except (TimeoutError, asyncio.CancelledError):  # the server closes what is incomplete
      LOG.info("predict: the receiver is too slow")


async def _unless_gone(receive: Callable, work: Awaitable):
  """The result of some work, which is given up when the sender disconnects.

  Raises:
    Disconnected: it did.
  """
  async def gone():
    while (await receive())["type"] != "http.disconnect":
      pass

  tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
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
  async def classes(request: Request) -> Response:
    table = queue.device.table
    if table is None:
      raise HttpError(503, "service", "is still loading its network", "try again", retry_after=5)
    told = [{"name": c.name, "value": i + 1, "color": list(c.color)}
            for i, c in enumerate(table.classes)]
    return _json(200, {"classes": told, "presets": {k: list(v) for k, v in table.presets.items()}})
  return classes


def _health(queue: Queue) -> Callable:
  async def health(request: Request) -> Response:
    ready = queue.device.ready
    return _json(200 if ready else 503, {
        "live": True, "ready": ready, "running": int(queue.running),
        "waiting": queue.taken - queue.running, "places": queue.places})
  return health


def _file(name: str, media: str) -> Callable:
  path = Path(__file__).parent / "web" / name

  async def file(request: Request) -> Response:
    return FileResponse(path, media_type=media, headers=HEADERS)
  return file


def _refuse(request: Request, refusal: HttpError) -> Response:
  response = _json(refusal.status, refusal.to_json())
  if refusal.retry_after is not None:
    response.headers["Retry-After"] = str(refusal.retry_after)
  return response


def _no_route(request: Request, error: HTTPException) -> Response:
  response = _json(error.status_code, {
      "error": "address", "reason": error.detail.lower(),
      "cure": "POST /predict, GET /, /classes or /health"})
  response.headers.update(error.headers or {})
  return response


def _fail(request: Request, error: Exception) -> Response:
  return _json(500, {"error": "service", "reason": "failed", "cure": "its log says why"})


def _json(status: int, told: dict) -> Response:
  return Response(json.dumps(told) + "\n", status, HEADERS, "application/json")
