"""Answers the series in the spool of a DICOM node: predicts them in the queue, sends results."""

import asyncio
import logging
from pathlib import Path
import tempfile
import time

from condseg_jax.errors import InputError
from condseg_jax.serve import dicom_answer
from condseg_jax.serve.audit import Audit
from condseg_jax.serve.audit import named_classes
from condseg_jax.serve.dimse import network
from condseg_jax.serve.dimse.settings import Node
from condseg_jax.serve.dimse.spool import Spool
from condseg_jax.serve.queue import Queue
from condseg_jax.serve.request import ANSWER
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import SERIES

POLL_SECONDS = 0.25
RETRY_SECONDS = (1.0, 60.0)  # between attempts to send: at first, at most
ATTEMPTS = 3  # to predict a series, if the failure may not be that of the series
LATER = (503, 507)  # the worker died, the disk is full
LOG = logging.getLogger("condseg_jax")


class Runner:
  """The work of a DICOM node in the web process.

  Args:
    node: the node.
    spool: its spool.
    queue: runs the predictions, as those of HTTP requests: one at a time.
    folder: for temporary folders of requests.
    audit: the audit log; None for none.
  """

  def __init__(self, node: Node, spool: Spool, queue: Queue, folder: Path,
               audit: Audit | None = None):
    self._node, self._spool, self._queue, self._folder = node, spool, queue, folder
    self._audit = audit

  async def run(self) -> None:
    """Receives, predicts and sends until it is cancelled.

    Raises:
      InputError: the node cannot listen, or its classes are not those of the network.
    """
    receiver = network.Receiver(self._node, self._spool)
    receiver.start()
    LOG.info("dicom: %s listens at %s, port %d; %d series wait", self._node.aet,
             self._node.listen, receiver.port, self._spool.waiting())
    tasks = [asyncio.create_task(work) for work in (self._predict(), self._send())]
    try:
      await asyncio.gather(*tasks)
    finally:
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)
      receiver.close()

  async def _predict(self) -> None:
    while self._queue.device.table is None:
      await asyncio.sleep(POLL_SECONDS)
    request = self._node.request
    self._queue.device.table.select(request.classes, request.preset)  # raises
    attempts: dict[str, int] = {}
    while True:
      try:
        pause = await self._answer_ready(attempts)
      except OSError as error:  # a full disk must not end the service
        LOG.warning("dicom: the spool cannot be used: %s", error.strerror or error)
        pause = RETRY_SECONDS[0]
      await asyncio.sleep(pause)

  async def _answer_ready(self, attempts: dict[str, int]) -> float:
    """Answers the series that are complete, oldest first, up to one that has to wait.

    Args:
      attempts: series → failed attempts; updated.

    Returns:
      Seconds until the next look.
    """
    await asyncio.to_thread(self._spool.collect)
    names = self._spool.ready()
    for name in names:
      start = time.monotonic()
      try:
        outcome = await self._answer(name)
      except HttpError:  # shutting down
        return RETRY_SECONDS[0]
      if self._audit:
        self._audit.write("", "dicom", outcome["status"], time.monotonic() - start,
                          named_classes(self._node.request))
      if outcome["status"] == 200:
        LOG.info("dicom: a series is segmented")
      elif outcome["status"] in LATER and attempts.get(name, 0) < ATTEMPTS - 1:
        attempts[name] = attempts.get(name, 0) + 1
        return RETRY_SECONDS[0]
      else:
        self._spool.fail(name, outcome)
        LOG.warning("dicom: a series is not segmented (status %d); see failed/%s.json in the "
                    "spool", outcome["status"], name)
      attempts.pop(name, None)
    return 0.0 if names else POLL_SECONDS

  async def _answer(self, name: str) -> dict:
    """Predicts a series; returns the outcome, whose results are in the spool if it is 200.

    Raises:
      HttpError: the service shuts down.
    """
    with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as temporary:
      folder = Path(temporary)
      (folder / SERIES).symlink_to(self._spool.series(name).absolute())
      # In turn with HTTP requests: else their senders, who try again sooner, would push it back.
      with self._queue.place(reserved=True):
        outcome = await self._queue.predict(folder, self._node.request, first=True)
      if outcome["status"] == 200:
        await asyncio.to_thread(self._keep, name, folder)
      return outcome

  def _keep(self, name: str, folder: Path) -> None:
    self._spool.answer(name, dicom_answer.unpack(folder / ANSWER, folder / "objects"))

  async def _send(self) -> None:
    pause = RETRY_SECONDS[0]
    while True:
      paths = self._spool.results()
      if not paths:
        await asyncio.sleep(POLL_SECONDS)
        continue
      try:
        await asyncio.to_thread(network.send, self._node, paths, self._spool.sent)
        LOG.info("dicom: sent %d objects to %s", len(paths), self._node.send_to.aet)
        pause = RETRY_SECONDS[0]
      except (InputError, OSError) as error:
        LOG.warning("dicom: %s; the next attempt in %d s", error, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS[1])
