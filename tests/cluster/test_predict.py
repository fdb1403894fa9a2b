"""condseg-predict --cluster: what one process writes and says, whatever happens to workers."""

import contextlib
import io
import json
import os
from pathlib import Path
import re
import signal
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from condseg_jax.cli import predict
from condseg_jax.formats import nifti
from condseg_jax.geometry import Volume
from support.tiny import AFFINE
from support.tiny import case


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Five volumes of different shapes, and a file that is none."""
  folder = tmp_path_factory.mktemp("images")
  for number in range(5):
    array = np.pad(case(np.random.default_rng(number))[0], ((0, number), (0, 0), (0, 3 * number)))
    nifti.write_nifti(folder / f"scan_{number}.nii.gz", Volume(array, AFFINE))
  (folder / "scan_2b.nii.gz").write_bytes(b"nothing")
  return folder


def segment(run, images, output, *more):
  return predict.main(["condseg-predict", f"--workdir={run}", f"--input={images}",
                       f"--output={output}", "--threshold=0.52", *more])


def files(folder: Path) -> dict[str, bytes]:
  """Every file but records and what is being written."""
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
          if path.is_file() and not path.name.startswith((".", "run"))}


def record(folder: Path) -> dict:
  """run.json without times and devices."""
  tree = json.loads((folder / "run.json").read_text())
  assert all(entry.pop("seconds") >= 0 for entry in tree["cases"].values())
  for entry in tree["cases"].values():
    entry.pop("devices", None)
  return tree


class Alone(NamedTuple):
  """The run of one process: its folder, and what it wrote to its streams."""

  folder: Path
  out: str
  err: str


@pytest.fixture(scope="module")
def alone(run, images, tmp_path_factory):
  folder, out, err = tmp_path_factory.mktemp("alone"), io.StringIO(), io.StringIO()
  with (pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err)):
    # As every test has it: the page holds the viewer of the cache, if there is one.
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    assert segment(run, images, folder, "--report", "--nopicture") == 1
  return Alone(folder, out.getvalue(), err.getvalue())


def masks(folder: Path) -> dict[str, bytes]:
  return {name: data for name, data in files(folder).items() if name.endswith(".nii.gz")}


def failures(text: str) -> list[str]:
  return [line for line in text.splitlines() if line.startswith(("failed:", "refused:"))]


def test_files_and_messages_are_those_of_one_process(run, images, alone, address, tmp_path, capfd):
  assert segment(run, images, tmp_path, "--report", "--nopicture",
                 f"--cluster={address}") == 1
  out, err = capfd.readouterr()
  found, expected = files(tmp_path), files(alone.folder)
  assert found.keys() == expected.keys()
  assert not [name for name, data in found.items() if data != expected[name]]
  assert len(found) == 11  # mask and statistics of five, and the page
  labels = [nifti.read_nifti(tmp_path / name).array for name in masks(tmp_path)]
  assert all(0 < np.count_nonzero(label) < label.size for label in labels)
  assert record(tmp_path) == record(alone.folder)
  assert len(failures(err)) == 1 and "scan_2b.nii.gz" in failures(err)[0]
  assert failures(err) == failures(alone.err)
  lines = [line.replace(str(alone.folder), str(tmp_path)) for line in alone.out.splitlines()]
  assert sorted(lines) == sorted(out.splitlines())
  bar = [line for line in re.split(r"[\r\n]", err) if line.startswith("predicting")][-1]
  assert "6/6" in bar and "<00:00" in bar, "images done and the time left"
  assert "windows, about" in alone.err and "windows, about" not in err


def test_a_second_run_continues(run, images, alone, address, tmp_path, capsys):
  arguments = (run, images, tmp_path, "--nopicture", f"--cluster={address}")
  assert segment(*arguments) == 1
  (tmp_path / "scan_1.nii.gz").unlink()
  kept = (tmp_path / "scan_3.nii.gz").stat().st_mtime_ns
  capsys.readouterr()
  assert segment(*arguments, "--continue") == 1
  assert capsys.readouterr().out.count("already done") == 4
  assert (tmp_path / "scan_3.nii.gz").stat().st_mtime_ns == kept
  assert masks(tmp_path) == masks(alone.folder)
  assert record(tmp_path)["cases"].keys() == record(alone.folder)["cases"].keys()


@pytest.mark.slow
def test_the_cases_of_a_killed_worker_go_to_others(run, images, alone, cluster, tmp_path):
  """A worker is killed once the first mask is there, and a case kills three more."""
  folder = tmp_path / "images"
  folder.mkdir()
  for path in images.glob("*_[0-4].nii.gz"):
    for copy in range(4):
      os.link(path, folder / f"{copy}_{path.name}")
  os.link(images / "scan_0.nii.gz", folder / "2_deadly.nii.gz")
  killed = []

  def kill():
    while not any((tmp_path / "out").glob("*.nii.gz")):
      time.sleep(0.01)
    killed.append(cluster.workers[0].process.pid)
    os.kill(killed[0], signal.SIGKILL)

  thread = threading.Thread(target=kill, daemon=True)
  thread.start()
  assert segment(run, folder, tmp_path / "out", "--nopicture",
                 f"--cluster={cluster.scheduler_address}") == 1
  thread.join(10)
  assert killed
  assert masks(tmp_path / "out") == {
      f"{copy}_{name}": data for name, data in masks(alone.folder).items() for copy in range(4)}
  cases = record(tmp_path / "out")["cases"]
  assert len(cases) == 21 and {entry["status"] for entry in cases.values()} == {"done", "failed"}
  assert "ended the process of its worker 3 times" in cases["2_deadly"]["reason"]
  assert [name for name, entry in cases.items() if entry["status"] == "failed"] == ["2_deadly"]
