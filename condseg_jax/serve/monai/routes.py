"""The routes of the MONAI Label protocol.

    GET  /info/                         models, classes, strategies
    POST /infer/{model}                 a segmentation of an image of the datastore or, by its
                                        SeriesInstanceUID, of the DICOMweb server (`image`), of a
                                        session (`session_id`) or in the form (`file`)
    PUT  /session/, GET, DELETE /session/{id}
    GET  /datastore/, GET, PUT /datastore/image, GET, PUT /datastore/label
    POST /activelearning/{strategy}     the next image to label
    GET  /auth/, POST /auth/token       whether a token is needed; name and token as user and
                                        password, and back comes the token
    /train/                             names the command that trains
"""

import asyncio
from collections.abc import Awaitable
from collections.abc import Callable
import contextlib
from pathlib import Path
import re
from urllib.parse import parse_qsl

from starlette.routing import Route

from condseg_jax.dicomweb.address import is_uid
from condseg_jax.serve.exchange import Answer
from condseg_jax.serve.exchange import Endpoint
from condseg_jax.serve.exchange import Exchange
from condseg_jax.serve.exchange import json_answer
from condseg_jax.serve.exchange import Shared
from condseg_jax.serve.monai import infer
from condseg_jax.serve.monai import info
from condseg_jax.serve.monai.datastore import Datastore
from condseg_jax.serve.monai.datastore import FINAL
from condseg_jax.serve.monai.datastore import STRATEGIES
from condseg_jax.serve.monai.sessions import Sessions
from condseg_jax.serve.queue import loading_error
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import MAX_VALUE

PARAMS = ("params",)  # the text field of forms
MAX_LOGIN = 4096  # bytes of a form with user and password


def monai_routes(shared: Shared, datastore: Datastore | None) -> list[Route]:
  """Returns the routes.

  Args:
    shared: what all requests share.
    datastore: images and labels; None for none.
  """
  protocol = _Protocol(shared, datastore)
  table: list[tuple[str, str, Callable[[Exchange], Awaitable[Answer]]]] = [
      ("GET", "/info/", protocol.info), ("POST", "/infer/{model}", protocol.infer),
      ("PUT", "/session/", protocol.start_session),
      ("GET", "/session/{id}", protocol.get_session),
      ("DELETE", "/session/{id}", protocol.end_session),
      ("GET", "/datastore/", protocol.list_images),
      ("GET", "/datastore/image", protocol.get_image),
      ("PUT", "/datastore/image", protocol.add_image), ("PUT", "/datastore/", protocol.add_image),
      ("GET", "/datastore/label", protocol.get_label),
      ("PUT", "/datastore/label", protocol.save_label),
      ("POST", "/activelearning/{strategy}", protocol.next_image),
      ("GET", "/auth/", protocol.auth), ("POST", "/auth/token", protocol.log_in),
      ("GET", "/auth/token/valid", protocol.auth),
      *((method, path, _train) for method in ("GET", "POST", "DELETE")
        for path in ("/train/", "/train/{model}"))]
  return [Route(path, Endpoint(path.strip("/").partition("/")[0], shared, handle),
                methods=[method]) for method, path, handle in table]


class _Protocol:
  """Answers to requests for images, labels and predictions."""

  def __init__(self, shared: Shared, datastore: Datastore | None):
    self._queue, self._datastore, self._tokens = shared.queue, datastore, shared.tokens
    self._pacs = shared.pacs.configured
    self._sessions = Sessions(shared.folder / "sessions")

  async def info(self, exchange: Exchange) -> Answer:
    exchange.parameters()
    device = self._queue.device
    if device.table is None:
      raise loading_error()
    status = await asyncio.to_thread(self._datastore.status) if self._datastore else info.EMPTY
    return json_answer(info.info(device.table, device.fusions, status))

  async def infer(self, exchange: Exchange) -> Answer:
    self._queue.check(exchange.owner)
    query = exchange.parameters("image", "session_id", "output")
    body, device = exchange.folder / BODY, self._queue.device
    assert device.table is not None  # checked above
    # Not `label`: there are no scribbles to start from.
    size, fields = await exchange.receive(body, PARAMS, file="file", optional=True)
    params = infer.parse_params(fields.get("params", ""))
    wanted = infer.to_request(exchange.request.path_params["model"], query["output"], params,
                              device.table, device.fusions)
    fetch = None
    if not size:
      body.unlink()
      fetch = await self._put_image(body, query)
    answer = await exchange.predict(wanted, fetch)
    return infer.compose(answer, query["output"], params, exchange.folder)

  async def _put_image(self, body: Path, query: dict[str, str]) -> tuple[str, str] | None:
    """Places the image of a session or of the datastore in the folder of a request.

    Returns:
      The series to fetch, if it is one of the DICOMweb server instead; see `Exchange.predict`.
    """
    if query["session_id"]:
      self._sessions.link(query["session_id"], body)
    elif query["image"]:
      image_id = query["image"]
      images = await asyncio.to_thread(self._datastore.images) if self._datastore else {}
      if image_id in images:
        body.symlink_to(images[image_id].path.absolute())
      elif self._pacs and is_uid(image_id):  # viewers of DICOM name series
        return "", image_id
      else:
        self._images().image(image_id)  # raises
    else:
      raise HttpError(400, "image", "is missing",
                      "give image=ID, session_id=ID, or the file in the form")
    return None

  async def start_session(self, exchange: Exchange) -> Answer:
    query = exchange.parameters("uncompress", "expiry")  # an archive is unpacked when it is read
    body = exchange.folder / BODY
    await exchange.receive(body, (*PARAMS, "client_id"))
    name, told = self._sessions.add(body, _seconds(query["expiry"]))
    return json_answer({"session_id": name, "session_info": told})

  async def get_session(self, exchange: Exchange) -> Answer:
    query, name = exchange.parameters("update_ts", "image"), exchange.request.path_params["id"]
    if query["image"].lower() in ("1", "true"):
      path = exchange.folder / BODY
      self._sessions.link(name, path)
      return Answer(path, "application/octet-stream", name)
    return json_answer(self._sessions.get(name))

  async def end_session(self, exchange: Exchange) -> Answer:
    exchange.parameters()
    return json_answer(self._sessions.remove(exchange.request.path_params["id"]))

  async def list_images(self, exchange: Exchange) -> Answer:
    output = exchange.parameters("output")["output"] or "stats"
    images = self._images()
    if output == "all":
      return json_answer(await asyncio.to_thread(images.to_json))
    if output == "stats":
      return json_answer(await asyncio.to_thread(images.status))
    raise HttpError(400, "output", f"unknown value {output[:MAX_VALUE]!r}", "use all or stats")

  async def get_image(self, exchange: Exchange) -> Answer:
    query = exchange.parameters("image", "check_sum")
    image = await asyncio.to_thread(self._images().image, query["image"])
    return Answer(image.path, image.media, f"{query['image']}{image.suffix}")

  async def add_image(self, exchange: Exchange) -> Answer:
    images, image_id = self._images(), exchange.parameters("image")["image"]
    body = exchange.folder / BODY
    await exchange.receive(body, PARAMS)
    await asyncio.to_thread(images.add_image, image_id, body)
    return json_answer({"image": image_id})

  async def get_label(self, exchange: Exchange) -> Answer:
    query = exchange.parameters("label", "image", "tag")  # a label has the id of its image
    name, tag = query["label"] or query["image"], query["tag"] or FINAL
    label = await asyncio.to_thread(self._images().label, name, tag)
    return Answer(label.path, label.media, f"{name}{label.suffix}")

  async def save_label(self, exchange: Exchange) -> Answer:
    images, query = self._images(), exchange.parameters("image", "tag")
    await asyncio.to_thread(images.image, query["image"])  # exists: before the body is received
    body = exchange.folder / BODY
    await exchange.receive(body, PARAMS)
    await asyncio.to_thread(images.save_label, query["image"], query["tag"] or FINAL, body)
    return json_answer({"image": query["image"], "label": query["image"]})

  async def next_image(self, exchange: Exchange) -> Answer:
    exchange.parameters()
    strategy = exchange.request.path_params["strategy"]
    if strategy not in STRATEGIES:
      raise HttpError(404, "strategy", f"{strategy[:MAX_VALUE]!r} is unknown",
                      f"use one of {', '.join(STRATEGIES)}")
    images = self._images()
    await exchange.receive(exchange.folder / BODY, PARAMS, optional=True)  # names the client
    ids = await asyncio.to_thread(images.unlabelled)
    if not ids:
      return json_answer({})
    chosen = STRATEGIES[strategy][1](ids, await asyncio.to_thread(images.ranks))
    image = await asyncio.to_thread(images.image, chosen)
    # No path: the client downloads the image.
    return json_answer({"id": chosen, "name": f"{chosen}{image.suffix}", "ext": image.suffix})

  async def auth(self, exchange: Exchange) -> Answer:
    exchange.parameters()
    return json_answer({"enabled": self._tokens is not None, "client_id": "", "realm": ""})

  async def log_in(self, exchange: Exchange) -> Answer:
    body = exchange.folder / BODY
    if self._tokens is None:
      with contextlib.suppress(HttpError):  # whatever is sent
        await exchange.receive(body, optional=True)
      return json_answer({"access_token": None, "token_type": None})
    length = exchange.request.headers.get("content-length", "")
    if not re.fullmatch(r"\d{1,9}", length) or int(length) > MAX_LOGIN:  # of anybody
      raise HttpError(413, "body", f"has no length, or more than {MAX_LOGIN} bytes",
                      "send username and password as a form")
    await exchange.receive(body, optional=True)
    fields = dict(parse_qsl(body.read_text(encoding="utf-8", errors="replace")))
    token = fields.get("password", "")
    self._tokens.owner(token, fields.get("username", ""))  # raises
    return json_answer({"access_token": token, "token_type": "bearer"})

  def _images(self) -> Datastore:
    if self._datastore is None:
      raise HttpError(404, "datastore", "there is none",
                      "start the service with --datastore=FOLDER, or send the image")
    return self._datastore


async def _train(_exchange: Exchange) -> Answer:
  raise info.training_error()


def _seconds(text: str) -> int:
  if not re.fullmatch(r"\d{0,9}", text):
    raise HttpError(400, "expiry", "is not a number of seconds", "give, for example, 600")
  return int(text or 0)
