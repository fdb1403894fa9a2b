"""The whole service as a process: load, memory, signals, dying workers, disconnecting clients."""

import asyncio
import contextlib
import gzip
import io
import json
import os
from pathlib import Path
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile

import httpx2
import numpy as np
import psutil
import pydicom
import pytest

import condseg_jax
from condseg_jax.cli import serve as command
from condseg_jax.cli.train import main as train
from condseg_jax.formats.nifti import read_nifti
from support import dimse
from support import orthanc
from support.service import bad_bodies
from support.service import nifti
from support.service import series
from support.service import voxels
from support.tiny import overrides
from support.tiny import write_datasets
from support.waiting import free_port
from support.waiting import until

REQUESTS = 200
WAITING = 8
# Tolerated growth of the memory of each process: allocators keep a little of what was freed.
GROWTH, SLACK = 1.05, 4 << 20
SHAPES = ((12, 10, 6), (18, 20, 8), (7, 31, 3), (25, 8, 12), (9, 9, 30))
ORDERS = ({}, {"classes": ["ball"]}, {"fusion": "softmax", "threshold": 0.3})

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A network that has learned enough to find something."""
  root = write_datasets(tmp_path_factory.mktemp("data"))
  arguments = overrides(root, **{"data.cache": root / "cache", "train.steps": 40})
  assert train(["condseg-train", "--config=base", f"--workdir={root / 'run'}", *arguments]) == 0
  return root / "run"


@contextlib.contextmanager
def serving(workdir, folder, *flags):
  """A service: its process and its address; its folder of requests lies in `folder`."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2",
                 "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TMPDIR": str(folder)}
  process = subprocess.Popen(
      [sys.executable, "-m", "condseg_jax.cli.serve", f"--workdir={workdir}", "--port=0", *flags],
      stderr=subprocess.PIPE, encoding="utf-8", env=environment)
  if hasattr(os, "sched_setaffinity"):  # all cores: a worker of the tests has some of them
    os.sched_setaffinity(process.pid, range(os.cpu_count()))
  try:
    address = None
    log = []
    while not address:
      line = process.stderr.readline()
      assert line, "".join(log)
      log.append(line)
      address = next((word.rstrip(";") for word in line.split() if word.startswith("http:")), None)
    # Nobody else reads it, and a full pipe would stop the service.
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
    until(lambda: httpx2.get(f"{address}/health").status_code == 200)
    yield process, address
  finally:
    process.kill()
    process.wait()
    process.stderr.close()
    drain.wait()


@pytest.fixture(scope="module")
def service(workdir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("requests")
  with serving(workdir, folder, f"--queue={WAITING}", "--max_mb=1") as (process, address):
    yield process, address, folder


def worker(process):
  (found,) = psutil.Process(process.pid).children()
  return found


def good_requests(predictor):
  """Bodies with their orders, and the label maps of `Predictor.predict`."""
  made = []
  for number, shape in enumerate(SHAPES):
    array = voxels(number, shape)
    for order in ORDERS:
      body = (nifti(array), gzip.compress(nifti(array)), series(array, "CT"))[len(made) % 3]
      made.append((body, order))
  return [(body, order, predictor.predict(read(body), **order)) for body, order in made]


def read(body):
  """The volume of a body, by the readers of files alone."""
  with tempfile.TemporaryDirectory() as folder:
    if body.startswith(b"PK"):
      zipfile.ZipFile(io.BytesIO(body)).extractall(folder)
      return condseg_jax.read(folder)
    path = Path(folder) / ("a.nii.gz" if body.startswith(b"\x1f\x8b") else "a.nii")
    path.write_bytes(body)
    return read_nifti(path)


async def answered(client, body, params):
  """The answer to a request that is sent until there is a place, and how often there was none."""
  full = 0
  while True:
    sent = {"files": {"file": ("x", body)}} if full % 2 else {"content": body}
    answer = await client.post("/predict", params=params, **sent)
    if answer.status_code != 429:
      return answer, full
    assert int(answer.headers["retry-after"]) >= 1
    full += 1
    await asyncio.sleep(random.uniform(0.05, 0.6))


async def mixed(address, good, bad, count):
  """Sends good and bad bodies all at once; returns what came back, and the fullest queue seen."""
  async def one(client, number):
    if number % 10 == 9:  # goes in the middle of its body
      return None, await broken(address, good[0][0])
    if number % 2:
      name = list(bad)[number // 2 % len(bad)]
      return ("bad", name), await answered(client, bad[name][0], {})
    body, order, expected = good[number // 2 % len(good)]
    params = {k: ",".join(v) if k == "classes" else v for k, v in order.items()}
    return ("good", expected), await answered(client, body, params)

  async def watch(client, seen):
    while True:
      health = (await client.get("/health")).json()
      seen.append((health["running"], health["waiting"]))
      await asyncio.sleep(0.05)

  limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
  async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=None) as client:
    seen = []
    watching = asyncio.create_task(watch(client, seen))
    answers = await asyncio.gather(*(one(client, number) for number in range(count)))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
  return answers, seen


def head(size):
  """The head of a request with a body of `size` bytes."""
  return f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()


async def broken(address, body):
  host, port = address.removeprefix("http://").split(":")
  _, writer = await asyncio.open_connection(host, int(port))
  writer.write(head(len(body)) + body[:len(body) // 2])
  with contextlib.suppress(ConnectionError):
    await writer.drain()
  writer.close()
  with contextlib.suppress(ConnectionError):
    await writer.wait_closed()


def resident(*processes):
  return [process.memory_info().rss for process in processes]


def test_200_requests_at_once(service, workdir):
  process, address, folder = service
  good, bad = good_requests(condseg_jax.load(workdir)), bad_bodies()
  assert any(expected.label.array.any() for _, _, expected in good)
  processes = psutil.Process(process.pid), worker(process)
  asyncio.run(mixed(address, good, bad, REQUESTS))  # everything has run once
  before = resident(*processes)
  answers, seen = asyncio.run(mixed(address, good, bad, REQUESTS))
  full = 0
  for kind, answer in answers:
    if kind is None:
      continue
    answer, times = answer
    full += times
    if kind[0] == "bad":
      assert 400 <= answer.status_code < 500, (kind, answer.text)
      assert set(answer.json()) == {"error", "reason", "cure"} and str(folder) not in answer.text
      continue
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    label = read(archive.read("label.nii.gz")).array
    np.testing.assert_array_equal(label, kind[1].label.array)
    counts = {k: v["voxels"] for k, v in json.loads(archive.read("statistics.json"))
              ["classes"].items()}
    assert counts == {name: (label == value).sum() for name, value in kind[1].names.items()}
  assert full > 0, "the queue was never full"
  assert max(running for running, _ in seen) == 1
  assert max(running + waiting for running, waiting in seen) <= WAITING + 1
  assert worker(process).pid == processes[1].pid, "the worker has ended meanwhile"
  after = resident(*processes)
  print(f"resident MiB, web and worker: {[b >> 20 for b in before]} → {[a >> 20 for a in after]}")
  for was, now in zip(before, after, strict=True):
    assert now <= GROWTH * was + SLACK
  (requests,) = folder.glob("condseg-serve-*")
  until(lambda: not list(requests.iterdir()))


def long_body():
  """A volume of thousands of windows, that compresses well."""
  array = 20 * (np.arange(128 * 128 * 31) % 7) - 20
  return gzip.compress(nifti(array.reshape(128, 128, 31).astype(np.int16)))


@contextlib.contextmanager
def running(address):
  """A long prediction under way; yields the socket of its caller."""
  host, port = address.removeprefix("http://").split(":")
  body = long_body()
  with socket.create_connection((host, int(port))) as caller:
    caller.sendall(head(len(body)) + body)
    until(lambda: httpx2.get(f"{address}/health").json()["running"] == 1)
    yield caller


def test_a_disconnect_frees_the_device(service):
  process, address, _ = service
  before = worker(process).pid
  with running(address):
    pass
  until(lambda: httpx2.get(f"{address}/health").json()["waiting"] == 0)
  until(lambda: httpx2.get(f"{address}/health").json()["running"] == 0)
  assert httpx2.post(f"{address}/predict", content=nifti(), timeout=None).status_code == 200
  assert worker(process).pid == before


def test_a_killed_worker_is_restarted(service):
  process, address, _ = service
  before = worker(process)
  with running(address) as caller:
    before.kill()
    answer = caller.recv(100)
    assert answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 422"))  # 422 while the body is read
  until(lambda: httpx2.get(f"{address}/health").status_code == 200)
  assert worker(process).pid != before.pid
  assert httpx2.post(f"{address}/predict", content=nifti(), timeout=None).status_code == 200


def test_a_worker_killed_while_idle_is_seen_and_restarted(service):
  process, address, _ = service
  before = worker(process)
  before.kill()
  start = time.monotonic()
  until(lambda: httpx2.get(f"{address}/health").status_code == 503)
  print(f"seen after {time.monotonic() - start:.2f} s")
  assert httpx2.get(f"{address}/health").json()["ready"] is False
  until(lambda: httpx2.get(f"{address}/health").status_code == 200)
  assert worker(process).pid != before.pid
  assert httpx2.post(f"{address}/predict", content=nifti(), timeout=None).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_down_in_order(workdir, tmp_path, number):
  with serving(workdir, tmp_path, "--max_mb=1") as (process, address):
    child = worker(process)
    with running(address) as caller:
      process.send_signal(number)
      answer = caller.recv(100)
    assert answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 200"))
    assert process.wait() == 0
    psutil.wait_procs([child])
    assert not list(tmp_path.glob("condseg-serve-*"))


def test_an_unfinished_upload_does_not_delay_the_shutdown(workdir, tmp_path):
  with serving(workdir, tmp_path) as (process, address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
      caller.sendall(head(999) + b"begin")
      until(lambda: list(tmp_path.glob("condseg-serve-*/*/body")))
      process.send_signal(signal.SIGTERM)
      assert caller.recv(100).startswith(b"HTTP/1.1 503")
      assert process.wait() == 0
    assert not list(tmp_path.glob("condseg-serve-*"))


def test_a_killed_dicom_node_answers_each_series_once(workdir, tmp_path):
  """Killed while series wait, one is predicted and one arrives; then started again."""
  pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
  node = dimse.make_node(tmp_path / "spool", free_port())
  dimse.write_config(node, tmp_path / "node.json")
  flags = (f"--dicom={node.aet}:{node.port}", f"--dicom_config={tmp_path / 'node.json'}")
  uids = [f"1.2.826.5.{number}.1" for number in range(4)]
  series = [orthanc.write_study(tmp_path / "series", uid[:-2], uid, modality="CT") for uid in uids]
  with dimse.storescp(node.send_to.port, tmp_path / "received"):
    with serving(workdir, tmp_path, *flags) as (process, _):
      for paths in series[:3]:
        assert dimse.ended(dimse.storescu(node.port, *paths)) == 0
      dimse.ended(dimse.storescu(node.port, *series[3][:2], flags=("--abort",)))
      until(lambda: list(node.spool.glob("ready/*")))
      process.kill()
      process.wait()
      assert len(list(node.spool.glob("*/*/*.dcm"))) > 2
    with serving(workdir, tmp_path, *flags):
      assert dimse.ended(dimse.storescu(node.port, *series[3])) == 0
      until(lambda: not any(any(node.spool.glob(f"{state}/*"))
                            for state in ("receiving", "ready", "results")))
  sources = [pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID
             for path in (tmp_path / "received").iterdir()]
  assert sorted(sources) == uids
  assert not list(node.spool.glob("failed/*"))


def test_a_dicom_node_that_cannot_be(workdir, tmp_path):
  pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
  (tmp_path / "node.json").write_text("{}")
  flags = ("--port=0", f"--workdir={workdir}", "--dicom=A:104")
  code, line = fails(*flags)
  assert code == 2 and "--dicom_config: is missing" in line
  code, line = fails(*flags, f"--dicom_config={tmp_path / 'node.json'}")
  assert code == 2 and "`peers` lists nobody" in line


def fails(*flags):
  done = subprocess.run([sys.executable, "-m", "condseg_jax.cli.serve", *map(str, flags)],
                        capture_output=True, encoding="utf-8")
  lines = [line for line in done.stderr.splitlines() if line.startswith("serve: ")]
  assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
  return done.returncode, lines[0]


def test_errors_at_startup(workdir, tmp_path):
  code, line = fails("--port=0", f"--workdir={tmp_path / 'nothing'}")
  assert code == 1 and "checkpoint" in line
  with socket.create_server(("127.0.0.1", 0)) as taken:
    code, line = fails(f"--port={taken.getsockname()[1]}", f"--workdir={workdir}")
  assert code == 2 and "in use" in line


def test_without_the_extra(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  monkeypatch.delitem(sys.modules, "condseg_jax.serve.server", raising=False)
  assert command.main(["condseg-serve", "--workdir=run"]) == 1
  assert 'pip install "condseg-jax[serve]"' in capsys.readouterr().err
