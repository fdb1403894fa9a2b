"""The whole service as a process: load, memory, signals, dying workers, disconnecting clients."""

import asyncio
import contextlib
import gzip
import json
import signal
import socket
import subprocess
import sys
import time

import httpx2
import numpy as np
import psutil
import pydicom
import pytest

import condseg_jax
from condseg_jax.cli import serve as command
from condseg_jax.cli.train import main as train
from support import dimse
from support import mixed_load
from support import orthanc
from support.service import nifti
from support.service import voxels
from support.serving import head
from support.serving import resident
from support.serving import serving
from support.serving import worker
from support.tiny import overrides
from support.tiny import write_datasets
from support.waiting import free_port
from support.waiting import until

WAITING = 8
# Tolerated growth of the memory of each process: allocators keep a little of what was freed.
GROWTH, SLACK = 1.05, 4 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A network that has learned enough to find something."""
  root = write_datasets(tmp_path_factory.mktemp("data"))
  arguments = overrides(root, **{"data.cache": root / "cache", "train.steps": 40})
  assert train(["condseg-train", "--config=base", f"--workdir={root / 'run'}", *arguments]) == 0
  return root / "run"


@pytest.fixture(scope="module")
def service(workdir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("requests")
  with serving(workdir, folder, f"--queue={WAITING}", "--max_mb=1") as (process, address):
    yield process, address, folder


def test_all_protocols_at_once(workdir, tmp_path):
  pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")
  good = mixed_load.good_requests(condseg_jax.load(workdir))
  assert any(expected.label.array.any() for _, _, expected in good)
  with orthanc.running(tmp_path) as archive:
    node = dimse.make_node(tmp_path / "spool", archive.port)
    dimse.write_config(node, tmp_path / "node.json")
    for number, shape in enumerate(mixed_load.SHAPES):
      study = f"{mixed_load.ROOT}.0.{number}"
      archive.upload(orthanc.write_study(tmp_path / "held", study, f"{study}.1",
                                         array=voxels(number, shape), modality="CT"))
    flags = (f"--dicom={node.aet}:{node.port}", f"--dicom_config={tmp_path / 'node.json'}",
             f"--dicomweb={archive.web}", f"--audit={tmp_path / 'audit.jsonl'}",
             f"--queue={WAITING}", "--max_mb=1")

    def idle():
      return not any(any(node.spool.glob(f"{state}/*"))
                     for state in ("receiving", "ready", "results"))

    def check_answers(studies, failed=0):
      """Each was segmented once, and its segmentation is in the archive."""
      lines = [json.loads(line) for path in tmp_path.glob("audit.jsonl*")  # after an hour several
               for line in path.read_text().splitlines()]
      outcomes = [line["outcome"] for line in lines if line["route"] == "dicom"]
      assert outcomes.count(200) == len(studies) - failed
      missing = [study for study in studies if not archive.series("SEG", study)]
      assert len(missing) == failed, missing

    with serving(workdir, tmp_path, *flags) as (process, address):
      async def work():
        load = mixed_load.Load(address, node, tmp_path / "sent", good)
        await load.run(0, mixed_load.times(mixed_load.WARM_UP))  # everything has run once
        await asyncio.to_thread(until, idle, 600)
        before = resident(process)
        load.seconds.clear()
        seconds, kills = await mixed_load.loaded(load, process)
        await asyncio.to_thread(until, idle, 600)
        await load.close()
        return load, seconds, kills, before

      load, seconds, kills, before = asyncio.run(work())
      until(lambda: httpx2.get(f"{address}/health").status_code == 200)
      after = resident(process)
      mixed_load.write_figures(load, seconds, kills, before, after)
      assert kills and load.killed <= kills and load.full
      failed = len(list(node.spool.glob("failed/*")))  # read by a worker as it was killed
      assert load.killed + failed <= kills
      check_answers(load.studies, failed)
      assert load.stored and all(archive.series("SEG", f"{mixed_load.ROOT}.0.{number}")
                                 for number in range(len(mixed_load.SHAPES)))
      for was, now in zip(before, after, strict=True):
        assert now <= GROWTH * was + SLACK
      (requests,) = tmp_path.glob("condseg-serve-*")
      until(lambda: not [path for path in requests.iterdir() if path.name != "sessions"])

      # SIGTERM while series wait: they are answered after the next start.
      late = mixed_load.Load(address, node, tmp_path / "late", good, first=10 ** 6)
      asyncio.run(late.send_series(4))  # which ends before they are segmented
      process.send_signal(signal.SIGTERM)
      assert process.wait() == 0
    log = (tmp_path / "service.log").read_text()
    with serving(workdir, tmp_path, *flags):
      until(idle)
    check_answers(load.studies + late.studies, failed)
  for private in ("Doe", "patient", mixed_load.ROOT, "Traceback"):
    assert private not in log


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
