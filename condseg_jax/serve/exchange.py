"""A request with a folder of its own: receives its body, predicts, sends the answer or error."""

import asyncio
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Collection
import json
import logging
from pathlib import Path
import tempfile
import time
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message
from starlette.types import Receive
from starlette.types import Scope
from starlette.types import Send

from condseg_jax.serve.audit import named_classes
from condseg_jax.serve.pacs import Pacs
from condseg_jax.serve.queue import closing_error
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import ANSWER
from condseg_jax.serve.request import disk_error
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import PredictRequest
from condseg_jax.serve.request import SERIES
from condseg_jax.serve.tokens import Tokens
from condseg_jax.serve.upload import Disconnected
from condseg_jax.serve.upload import Incoming
from condseg_jax.serve.upload import Uploads

BLOCK = 1 << 18  # bytes of a response that are sent at once
# No third-party content and no caching: the images are of patients.
HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
           "frame-ancestors 'none'", "Cache-Control": "no-store",
           "X-Content-Type-Options": "nosniff"}
LOG = logging.getLogger("condseg_jax")


class Answer(NamedTuple):
  """What is sent back with status 200.

  Attributes:
    content: the file, or its bytes.
    media: media type.
    name: file name suggested to the client; "" for none.
  """

  content: Path | bytes
  media: str
  name: str = ""


def json_answer(content: object) -> Answer:
  """Returns an answer in JSON."""
  return Answer(json.dumps(content).encode() + b"\n", "application/json")


class Shared(NamedTuple):
  """What all requests share.

  Attributes:
    queue: runs the predictions.
    limits: of requests.
    folder: folder in which each request gets a temporary folder.
    uploads: the bodies that are being received.
    pacs: the DICOMweb server.
    tokens: one of which every request must have; None if anybody may ask.
  """

  queue: Queue
  limits: Limits
  folder: Path
  uploads: Uploads
  pacs: Pacs
  tokens: Tokens | None = None


class Exchange:
  """One request.

  Attributes:
    request: its head.
    folder: for its files; removed when the answer has been sent.
    queue: runs the predictions.
    owner: name of its token; "" for none.
  """

  def __init__(self, request: Request, incoming: Incoming, receive: Receive, folder: Path,
               shared: Shared):
    self.request, self.folder = request, folder
    self.queue, self.owner = shared.queue, request.state.owner
    self._pacs = shared.pacs
    self._incoming, self._receive, self._uploads = incoming, receive, shared.uploads

  def parameters(self, *names: str) -> dict[str, str]:
    """Returns the parameters of the query; "" for those that are not given.

    Args:
      names: of the parameters that the route takes.

    Raises:
      HttpError: another parameter.
    """
    given = self.request.query_params
    for name in given:
      if name not in names:
        raise HttpError(400, "query", f"unknown parameter {name[:40]!r}",
                        f"use one of {', '.join(names)}" if names else "give none")
    return {name: given.get(name, "") for name in names}

  async def receive(self, path: Path, fields: Collection[str] = (), *, file: str = "",
                    optional: bool = False) -> tuple[int, dict[str, str]]:
    """Receives the body; returns the size of its file and its text fields, see `Incoming.save`.

    A slow sender occupies no place of the queue.
    """
    with self._uploads.place(self._incoming):
      size = await self._incoming.save(path, fields, file=file, optional=optional)
    return size, dict(self._incoming.fields)

  def check(self, wanted: PredictRequest) -> None:
    """Raises HttpError for a prediction that needs a DICOMweb server, if the service has none."""
    if wanted.study or wanted.store:
      self._pacs.check()

  async def predict(self, wanted: PredictRequest, fetch: tuple[str, str] | None = None) -> Answer:
    """Predicts from the files in the folder; stopped if the client disconnects.

    Args:
      wanted: the request.
      fetch: study and series to fetch from the DICOMweb server instead of a body, see `Pacs.fetch`;
        with a place in the queue, so that nothing is fetched in vain.

    Raises:
      HttpError: no place in the queue, the series cannot be fetched, or the prediction failed.
      Disconnected: the client has disconnected.
    """
    self.request.state.classes = named_classes(wanted)
    with self.queue.place(self.owner):
      if fetch is not None:
        await _while_connected(self._receive, self._pacs.fetch(*fetch, self.folder / SERIES))
      outcome = await _while_connected(self._receive, self.queue.predict(self.folder, wanted))
    if outcome["status"] != 200:
      raise HttpError(outcome["status"], outcome["error"], outcome["reason"], outcome["cure"])
    if wanted.store:
      await self._pacs.store(self.folder / ANSWER, self.folder)
    return Answer(self.folder / ANSWER, outcome["media"], outcome["name"])


class Endpoint:
  """A route as a separate ASGI application, which controls the transfer of its response.

  Args:
    name: of the route in the log.
    shared: see `Shared`.
    handle: makes the answer to a request.
  """

  def __init__(self, name: str, shared: Shared, handle: Callable[[Exchange], Awaitable[Answer]]):
    self._name, self._shared, self._handle = name, shared, handle

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Handles one request, see the ASGI specification."""
    request = Request(scope)
    incoming = Incoming(receive, request.headers, self._shared.limits)
    start = time.monotonic()
    try:
      with tempfile.TemporaryDirectory(dir=self._shared.folder, ignore_cleanup_errors=True) as name:
        answer = await self._handle(
            Exchange(request, incoming, receive, Path(name), self._shared))
        size = await self._send_answer(send, answer)
        LOG.info("%s: %d bytes sent, %.1f s", self._name, size, time.monotonic() - start)
    except Disconnected:
      LOG.info("%s: client disconnected after %.1f s", self._name, time.monotonic() - start)
    except asyncio.CancelledError:  # by the server, at the end of its graceful shutdown
      response = error_response(closing_error())
      response.headers["Connection"] = "close"
      await response(scope, receive, send)
    except OSError as error:
      LOG.exception("a request could not be written to disk")
      await send_error(scope, disk_error(error), incoming, send)
    except HttpError as error:
      LOG.info("%s: %d", self._name, error.status)  # the text may quote file names of a patient
      await send_error(scope, error, incoming, send)

  async def _send_answer(self, send: Send, answer: Answer) -> int:
    """Sends an answer and returns its size; gives up if the client receives it too slowly."""
    content = answer.content
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    headers = {**HEADERS, "Content-Type": answer.media, "Content-Length": str(size)}
    if answer.name:
      headers["Content-Disposition"] = f'attachment; filename="{answer.name}"'
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    try:
      async with asyncio.timeout(self._shared.limits.transfer_seconds(size)):
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        if isinstance(content, bytes):
          await send({"type": "http.response.body", "body": content})
          return size
        with content.open("rb") as stream:
          while block := stream.read(BLOCK):
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except (TimeoutError, asyncio.CancelledError):  # the server closes an incomplete response
      LOG.info("%s: client receives too slowly", self._name)
    return size


async def send_error(scope: Scope, error: HttpError, incoming: Incoming, send: Send) -> None:
  """Sends an error, and drains the rest of the body before the response ends."""
  async def send_and_drain(message: Message) -> None:
    if message["type"] == "http.response.body" and not incoming.ended:
      await send({**message, "more_body": True})
      await incoming.drain()
      message = {"type": "http.response.body", "body": b""}
    await send(message)

  response = error_response(error)
  if not incoming.ended:
    response.headers["Connection"] = "close"
  await response(scope, incoming.rest, send_and_drain)


def error_response(error: HttpError) -> Response:
  """Returns the response for an error."""
  response = json_response(error.status, error.to_json())
  if error.retry_after is not None:
    response.headers["Retry-After"] = str(error.retry_after)
  if error.status == 401:  # browsers ask their user for name and token
    for challenge in ('Basic realm="condseg"', "Bearer"):  # in one line, Chromium understands none
      response.headers.append("WWW-Authenticate", challenge)
  return response


def json_response(status: int, content: dict) -> Response:
  """Returns one line of JSON as a response."""
  return Response(json.dumps(content) + "\n", status, HEADERS, "application/json")


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
