"""Requests over all protocols at once, good and broken ones, while the worker is killed.

What is accepted is answered, once and right, and the memory is what it was. For an hour:

    CONDSEG_LOAD_SECONDS=3600 CONDSEG_LOAD_JSON=benchmarks/load.json \
      python -m pytest tests/serve/test_service.py -k all_protocols
"""

import asyncio
from collections import defaultdict
import contextlib
import gzip
import io
import itertools
import json
import os
from pathlib import Path
import random
import tempfile
import time
import zipfile

import httpx2
import numpy as np

import condseg_jax
from condseg_jax.formats.nifti import read_nifti
from support import dimse
from support import orthanc
from support.service import bad_bodies
from support.service import nifti
from support.service import series
from support.service import voxels
from support.serving import head
from support.serving import worker
from tools.benchmark import __main__ as benchmark

SECONDS = float(os.environ.get("CONDSEG_LOAD_SECONDS", 0))
REQUESTS, WARM_UP = 300, 60  # where no time is given
KILL_SECONDS = 300  # between two deaths of the worker, where a time is given
AT_ONCE, SESSIONS = 24, 4
SHAPES = ((12, 10, 6), (18, 20, 8), (7, 31, 3), (25, 8, 12), (9, 9, 30))
ORDERS = ({}, {"classes": ["ball"]}, {"fusion": "softmax", "threshold": 0.3})
# Kind of request → how often. Of those in the second line nobody waits for the answer.
KINDS = {"predict": 8, "monai": 4, "session": 2, "dicomweb": 3, "dicom": 4, "bad": 4, "look": 2,
         "broken": 2, "gone": 2, "aborted": 1}
ROOT = "1.2.826.7"  # of the identifiers here


class Load:
  """Sends requests and checks what comes back.

  Attributes:
    seconds: kind → duration of every request, the time for a place in the queue included.
    full: how often there was no place in the queue.
    killed: requests that ended with their worker, and were told so.
    studies: StudyInstanceUIDs of the series that the DICOM node has accepted.
    stored: segmentations that the service has stored by DICOMweb.
  """

  def __init__(self, address, node, folder, good, first=1):
    self.seconds: dict[str, list[float]] = defaultdict(list)
    self.full = self.killed = self.stored = 0
    self.studies: list[str] = []
    self._address, self._node, self._folder, self._good = address, node, folder, good
    self._bodies = list(bad_bodies().values())
    self._numbers, self._sessions = itertools.count(first), asyncio.Semaphore(SESSIONS)
    self._client = httpx2.AsyncClient(
        base_url=address, timeout=None,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20))

  async def run(self, seed, more):
    """Sends requests, `AT_ONCE` at a time, while `more()` is true."""
    rng = random.Random(seed)

    async def send():
      while more():
        kind, = rng.choices(list(KINDS), list(KINDS.values()))
        start = time.monotonic()
        await getattr(self, f"_{kind}")(rng)
        self.seconds[kind].append(time.monotonic() - start)
    await asyncio.gather(*(send() for _ in range(AT_ONCE)))

  async def send_series(self, count):
    """Sends series to the DICOM node, one after the other."""
    for _ in range(count):
      await self._dicom(random.Random(2))

  async def close(self):
    """Closes the connections."""
    await self._client.aclose()

  async def _answer(self, path, *, method="POST", **sent):
    """The answer to a request that is sent until there is a place; None if its worker died."""
    while (answer := await self._client.request(method, path, **sent)).status_code == 429:
      assert int(answer.headers["retry-after"]) >= 1
      self.full += 1
      await asyncio.sleep(random.uniform(0.05, 0.6))
    if "the worker exited" in answer.text[:200] or "crashed the reader" in answer.text[:200]:
      self.killed += 1
      return None
    return answer

  async def _predict(self, rng):
    body, order, expected = rng.choice(self._good)
    params = {k: ",".join(v) if k == "classes" else v for k, v in order.items()}
    sent = {"files": {"file": ("x", body)}} if rng.random() < 0.5 else {"content": body}
    if (answer := await self._answer("/predict", params=params, **sent)) is None:
      return
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    label = _read(archive.read("label.nii.gz")).array
    np.testing.assert_array_equal(label, expected.label.array)
    counts = {k: v["voxels"] for k, v in json.loads(archive.read("statistics.json"))
              ["classes"].items()}
    assert counts == {name: (label == value).sum() for name, value in expected.names.items()}

  async def _monai(self, rng):
    body, order, expected = rng.choice(self._good)
    _check_label(await self._answer("/infer/segmentation?output=image", files={
        "params": (None, json.dumps(order)), "file": ("x", body)}), expected)

  async def _session(self, rng):
    body, order, expected = rng.choice(self._good)
    async with self._sessions:
      begun = await self._answer("/session/", method="PUT", files={"files": ("x", body)})
      name = begun.json()["session_id"]
      _check_label(await self._answer(
          f"/infer/segmentation?output=image&session_id={name}",
          files={"params": (None, json.dumps(order))}), expected)
      assert (await self._answer(f"/session/{name}", method="DELETE")).status_code == 200

  async def _dicomweb(self, rng):
    number = rng.randrange(len(SHAPES))
    answer = await self._answer("/predict", params={
        "study": f"{ROOT}.0.{number}", "series": f"{ROOT}.0.{number}.1", "output": "dicom_seg",
        "store": "1"})
    if answer is not None:
      assert answer.status_code == 200 and answer.content[128:132] == b"DICM", answer.text
      self.stored += 1

  async def _dicom(self, rng):
    await self._send(*self._series(rng))

  async def _aborted(self, rng):
    study, paths = self._series(rng)
    await self._store(paths[:2], "--abort")
    await self._send(study, paths)

  def _series(self, rng):
    number = next(self._numbers)
    study = f"{ROOT}.{number}"
    shape = rng.choice(SHAPES)
    return study, orthanc.write_study(self._folder / study, study, f"{study}.1",
                                      array=voxels(number, shape), modality="CT")

  async def _send(self, study, paths):
    assert await self._store(paths) == 0
    self.studies.append(study)

  async def _store(self, paths, *flags):
    return await asyncio.to_thread(
        lambda: dimse.ended(dimse.storescu(self._node.port, *paths, flags=flags)))

  async def _bad(self, rng):
    answer = await self._answer("/predict", content=rng.choice(self._bodies)[0])
    if answer is not None:
      assert 400 <= answer.status_code < 500, answer.text
      assert set(answer.json()) == {"error", "reason", "cure"} and "/tmp" not in answer.text

  async def _look(self, rng):
    path = rng.choice(["/health", "/health", "/info/", "/metrics", "/classes"])
    answer = await self._answer(path, method="GET")
    assert answer.status_code in (200, 503)
    if path == "/health":  # one at a time, and no more than there are places and the node has
      state = answer.json()
      assert state["running"] <= 1
      assert state["running"] + state["waiting"] <= state["places"] + 1

  async def _broken(self, rng):
    body = rng.choice(self._good)[0]
    await self._disconnect(head(len(body)) + body[:len(body) // 2], rng.choice([0, 0, 3]))

  async def _gone(self, rng):
    body = rng.choice(self._good)[0]
    await self._disconnect(head(len(body)) + body, rng.uniform(0, 0.3))

  async def _disconnect(self, sent, seconds):
    host, port = self._address.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
      await writer.drain()
    await asyncio.sleep(seconds)
    writer.close()
    with contextlib.suppress(ConnectionError):
      await writer.wait_closed()


def _check_label(answer, expected):
  if answer is not None:
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(_read(answer.content).array, expected.label.array)


def good_requests(predictor):
  """Bodies with their orders, and the results of `Predictor.predict`."""
  made = []
  for number, shape in enumerate(SHAPES):
    array = voxels(number, shape)
    for order in ORDERS:
      body = (nifti(array), gzip.compress(nifti(array)), series(array, "CT"))[len(made) % 3]
      made.append((body, order))
  return [(body, order, predictor.predict(_read(body), **order)) for body, order in made]


def _read(body):
  """The volume of a body, by the readers of files alone."""
  with tempfile.TemporaryDirectory() as folder:
    if body.startswith(b"PK"):
      zipfile.ZipFile(io.BytesIO(body)).extractall(folder)
      return condseg_jax.read(folder)
    path = Path(folder) / ("a.nii.gz" if body.startswith(b"\x1f\x8b") else "a.nii")
    path.write_bytes(body)
    return read_nifti(path)


def times(count):
  """A condition that is true `count` times."""
  left = iter(range(count))
  return lambda: next(left, None) is not None


async def loaded(load, process):
  """Runs the load, and kills the worker meanwhile; returns the seconds it took, and the deaths."""
  start, kills = time.monotonic(), 0
  if SECONDS:
    sending = asyncio.create_task(load.run(1, lambda: time.monotonic() - start < SECONDS))
  else:
    sending = asyncio.create_task(load.run(1, times(REQUESTS)))
  while not sending.done():
    if SECONDS:
      await asyncio.wait({sending}, timeout=KILL_SECONDS)
      if time.monotonic() - start > SECONDS - KILL_SECONDS / 2:
        break
    elif kills or sum(map(len, load.seconds.values())) < REQUESTS // 2:
      await asyncio.sleep(0.05)
      continue
    worker(process).kill()
    kills += 1
  await sending
  return time.monotonic() - start, kills


def write_figures(load, seconds, kills, before, after):
  """Writes the figures of an hour as those of a benchmark."""
  count, rows = sum(map(len, load.seconds.values())), []

  def add(name, ours, unit, note):
    rows.append({"name": name, "ours": ours, "peer": None, "ratio": None, "unit": unit,
                 "note": note})

  add("requests of all kinds", count / seconds, "1/s",
      f"{count:,} in {seconds:.0f} s, {AT_ONCE} at a time; the queue was full {load.full:,} times; "
      f"the worker was killed {kills} times, which ended {load.killed} requests with an error; "
      f"{len(load.studies):,} series by C-STORE, each segmented once")
  for kind, values in sorted(load.seconds.items()):
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    add(f"{kind}, median", float(p50), "s", f"p95 {p95:.2f} s, p99 {p99:.2f} s, {len(values):,}")
  for name, was, now in zip(("web process", "worker"), before, after, strict=True):
    add(f"memory of the {name} at the end", now, "bytes", f"{was / 2 ** 30:.2f} GiB after "
        f"{WARM_UP} requests")
  tree = {"device": benchmark.device(), "versions": benchmark.versions(),
          "settings": benchmark.settings(), "rows": rows}
  print(json.dumps(tree, indent=1))
  if path := os.environ.get("CONDSEG_LOAD_JSON"):
    Path(path).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
