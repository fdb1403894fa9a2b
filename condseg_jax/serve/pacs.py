"""The DICOMweb server of the service: requests name series on it, and never an address."""

import asyncio
from collections.abc import Callable
from pathlib import Path
import threading
from typing import TypeVar

from condseg_jax.dicomweb.address import is_uid
from condseg_jax.dicomweb.server import Server
from condseg_jax.errors import InputError
from condseg_jax.serve import dicom_answer
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import MAX_VALUE

T = TypeVar("T")


class Pacs:
  """Fetches series for requests, and stores their results.

  Args:
    server: the server; None if the service has none.
    limits: of requests; at most `places` transfers run at a time.
  """

  def __init__(self, server: Server | None, limits: Limits):
    self._server, self._limits, self._running = server, limits, 0

  @property
  def configured(self) -> bool:
    """Whether there is a server."""
    return self._server is not None

  def check(self) -> Server:
    """Returns the server.

    Raises:
      HttpError: the service has none.
    """
    if self._server is None:
      raise HttpError(404, "dicomweb", "the service has no DICOMweb server",
                      "start it with --dicomweb=http://HOST/dicom-web, or send the series")
    return self._server

  async def fetch(self, study: str, series: str, folder: Path) -> None:
    """Writes a series into a new folder.

    Args:
      study: StudyInstanceUID; "" for any study, with `series`.
      series: SeriesInstanceUID; "" for the only image series of the study.
      folder: is created.

    Raises:
      HttpError: no or an invalid identifier, several series, too large a series, or the server
        fails.
    """
    for name, uid in (("study", study), ("series", series)):
      if uid and not is_uid(uid):
        raise HttpError(400, name, f"{uid[:MAX_VALUE]!r} is not a DICOM identifier",
                        "give digits and dots")
    stop = threading.Event()

    def run(server: Server) -> None:
      found = server.image_series(study, series)
      if len(found) > 1:
        raise HttpError(422, "series", f"the study has {len(found)} image series",
                        f"give one of {', '.join(one.uid for one in found[:20])}")
      server.fetch(found[0], folder, max_files=self._limits.members,
                   max_bytes=self._limits.unpacked, stopped=stop.is_set)

    try:
      await self._call(run)
    finally:
      stop.set()

  async def store(self, answer: Path, folder: Path) -> None:
    """Stores the DICOM objects of an answer: a DICOM file, or a zip archive of several.

    Raises:
      HttpError: the server refuses them, or fails.
    """
    def run(server: Server) -> None:
      server.store(dicom_answer.unpack(answer, folder / "objects"))

    await self._call(run)

  async def _call(self, run: Callable[[Server], T]) -> T:
    """Runs a transfer in a thread."""
    server = self.check()
    if self._running >= self._limits.places:
      raise HttpError(429, "service", f"has {self._running} transfers with its DICOMweb server",
                      "try again later", retry_after=2)
    self._running += 1
    try:
      return await asyncio.to_thread(run, server)
    except InputError as error:  # its subject is the address, which is nobody's business
      status = {"missing": 404, "size": 413}.get(error.kind, 502)
      raise HttpError(status, "dicomweb", error.reason, error.cure) from error
    finally:
      self._running -= 1
