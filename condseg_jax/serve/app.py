"""The routes of the service.

    POST /predict   a volume in the body, a prediction in the response; see `request.PARAMETERS`
                    and `request.OUTPUTS`
    GET  /classes   names, values and colours of the classes, and presets
    GET  /health    200 if ready, else 503; number of places, of running and of waiting requests
    GET  /queue/TICKET  how far the request is that was sent with this `ticket`
    GET  /live      200 as long as the web process answers
    GET  /metrics   for Prometheus, see `metrics`
    GET  /          a web page to upload volumes and view the result

and those of the MONAI Label protocol, see `monai.routes`.
"""

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.responses import Response
from starlette.routing import Route

from condseg_jax.dicomweb.server import Server
from condseg_jax.serve.exchange import Answer
from condseg_jax.serve.exchange import Endpoint
from condseg_jax.serve.exchange import error_response
from condseg_jax.serve.exchange import Exchange
from condseg_jax.serve.exchange import HEADERS
from condseg_jax.serve.exchange import json_response
from condseg_jax.serve.exchange import Shared
from condseg_jax.serve.guard import Access
from condseg_jax.serve.guard import Guard
from condseg_jax.serve.metrics import MEDIA
from condseg_jax.serve.metrics import Metrics
from condseg_jax.serve.monai.datastore import Datastore
from condseg_jax.serve.monai.routes import monai_routes
from condseg_jax.serve.pacs import Pacs
from condseg_jax.serve.queue import loading_error
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import read_request
from condseg_jax.serve.upload import Uploads

WEB = Path(__file__).parent / "web"
# Path → file in `WEB` and media type.
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
        **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in ("page", "viewer", "zip")}}


def build_app(queue: Queue, limits: Limits, folder: Path, access: Access,
              datastore: Datastore | None = None, server: Server | None = None) -> Starlette:
  """Builds the application.

  Args:
    queue: runs the requests.
    limits: of requests.
    folder: folder in which each request gets a temporary folder.
    access: who may ask.
    datastore: images that clients of MONAI Label may list, segment and label.
    server: the DICOMweb server whose series requests may name.
  """
  shared = Shared(queue, limits, folder, Uploads(limits), Pacs(server, limits), access.tokens)
  metrics = Metrics(queue)
  routes = [Route("/predict", Endpoint("predict", shared, predict), methods=["POST"]),
            Route("/classes", _classes(queue)), Route("/health", _health(queue)),
            Route("/queue/{ticket}", _progress(queue)), Route("/live", _live),
            Route("/metrics", _metrics(metrics)),
            *(Route(path, _page_file(*file)) for path, file in PAGE.items()),
            *monai_routes(shared, datastore)]
  app = Starlette(
      routes=routes, middleware=[Middleware(Guard, access, limits, metrics)], exception_handlers={
          HttpError: lambda _request, error: error_response(error),
          HTTPException: lambda _request, error: _routing_error(error),
          Exception: lambda _request, _error: _internal_error()})
  app.router.redirect_slashes = False
  return app


async def predict(exchange: Exchange) -> Answer:
  """Answers POST /predict."""
  queue, request = exchange.queue, exchange.request
  queue.check(exchange.owner)  # and the query: before the body is received
  wanted = read_request(request.query_params.multi_items(), request.headers.get("accept", "*/*"),
                        queue.device.table, queue.device.fusions)
  exchange.check(wanted)
  size, _ = await exchange.receive(exchange.folder / BODY, optional=bool(wanted.study))
  if wanted.study:
    if size:
      raise HttpError(400, "study", "is given, and so is a body", "give one of them")
    return await exchange.predict(wanted, (wanted.study, wanted.series))
  return await exchange.predict(wanted)


def _classes(queue: Queue) -> Callable:
  async def classes(_request: Request) -> Response:
    table = queue.device.table
    if table is None:
      raise loading_error()
    entries = [{"name": c.name, "value": i + 1, "color": list(c.color)}
               for i, c in enumerate(table.classes)]
    presets = {name: list(members) for name, members in table.presets.items()}
    return json_response(200, {"classes": entries, "presets": presets, "axes": queue.device.axes})
  return classes


def _health(queue: Queue) -> Callable:
  async def health(_request: Request) -> Response:
    ready = queue.device.ready
    return json_response(200 if ready else 503, {
        "live": True, "ready": ready, "running": int(queue.running),
        "waiting": queue.taken - queue.running, "places": queue.places})
  return health


def _progress(queue: Queue) -> Callable:
  async def progress(request: Request) -> Response:
    return json_response(200, queue.progress(request.path_params["ticket"]))
  return progress


async def _live(_request: Request) -> Response:
  return json_response(200, {"live": True})


def _metrics(metrics: Metrics) -> Callable:
  async def text(_request: Request) -> Response:
    return Response(metrics.render(), headers={**HEADERS, "Content-Type": MEDIA})
  return text


def _page_file(name: str, media: str) -> Callable:
  async def file(_request: Request) -> Response:
    return FileResponse(WEB / name, media_type=media, headers=HEADERS)
  return file


def _routing_error(error: HTTPException) -> Response:
  response = json_response(error.status_code, {
      "error": "address", "reason": error.detail.lower(),
      "cure": "use POST /predict, or GET /, /classes or /health"})
  response.headers.update(error.headers or {})
  return response


def _internal_error() -> Response:
  return json_response(500, {"error": "service", "reason": "internal error",
                             "cure": "see the service log"})
