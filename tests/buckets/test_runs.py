"""A whole run in a bucket: prepared, trained, killed, resumed, evaluated, used, exported."""

from collections import Counter
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from etils import epath
import jax
import numpy as np
import pytest

import condseg_jax
from condseg_jax.cli import evaluate
from condseg_jax.cli import export
from condseg_jax.cli import predict
from condseg_jax.cli import prepare
from condseg_jax.cli import train
from condseg_jax.data.store import Store
from condseg_jax.system import buckets
from condseg_jax.train.checkpoint import Checkpoints
from support.tiny import overrides
from support.tiny import write_datasets
from support.waiting import until

pytestmark = pytest.mark.slow
STEPS = 9


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(moto, root):
  """Stores at BUCKET/data and a short run on them at BUCKET/run; yields the bucket's address."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in moto.environment.items():
      patch.setenv(name, value)
    bucket = f"s3://{moto.bucket()}"
    prepared(root, bucket)
    assert train.main(arguments(root, f"{bucket}/run", f"{bucket}/data")) == 0
    yield bucket


def prepared(root, place) -> None:
  for name in ("ball", "box"):
    assert prepare.main(["condseg-prepare", "--format=msd", f"--source={root / 'train' / name}",
                         "--spacing=2,1,1", f"--out={place}/data/{name}"]) == 0


def arguments(root, workdir, data, **changes):
  return ["condseg-train", "--config=base", f"--workdir={workdir}",
          *overrides(root, **{"data.root": data} | changes)]


def environment(**changes) -> dict[str, str]:
  """That of a process of its own, as the tests have it."""
  return os.environ | {
      "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "CONDSEG_ONEDNN": "0",
      "CONDSEG_LARGE_PAGES": "0",
      "PYTHONPATH": str(Path(condseg_jax.__file__).parents[1])} | {
          name: str(value) for name, value in changes.items()}


def variables(workdir) -> dict:
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    return jax.device_get(checkpoints.restore_variables(checkpoints.pick("last")))
  finally:
    checkpoints.close()


def steps(workdir) -> list[int]:
  """The steps whose checkpoints are complete."""
  folder = epath.Path(workdir) / "checkpoints"
  found = folder.iterdir() if folder.exists() else []
  return sorted(int(p.name) for p in found if (p / "commit_success.txt").exists())


def same(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in
             zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_store_in_a_bucket_is_the_store_of_a_disk(run, root, tmp_path):
  prepared(root, tmp_path)
  for name in ("ball", "box"):
    here, there = tmp_path / "data" / name, epath.Path(run) / "data" / name
    assert (there / "manifest.json").read_text() == (here / "manifest.json").read_text()
    files = [p.relative_to(here) for p in here.rglob("*") if p.is_file() and p.name != ".lock"]
    assert len(files) > 20
    for path in files:
      assert (there / path).read_bytes() == (here / path).read_bytes(), path
    store = Store.open(there)
    assert all(store.digest(case) == (case.image_sha256, case.sha256) for case in store.cases)


def test_a_killed_run_goes_on_to_the_same_network_and_leaves_nothing_here(moto, run, root,
                                                                        tmp_path):
  local, remote = tmp_path / "local", f"{run}/killed"
  prepared(root, local)
  more = {"train.steps": STEPS}
  assert train.main(arguments(root, local / "run", local / "data", **more)) == 0

  places = {name: tmp_path / name for name in ("cwd", "home", "temporary", "cache")}
  for folder in places.values():
    folder.mkdir()
  command = [sys.executable, "-m", "condseg_jax.cli.train",
             *arguments(root, remote, f"{run}/data", **more)[1:]]
  before, sent = len(moto.requests()), moto.relay.sent
  own = environment(HOME=places["home"], TMPDIR=places["temporary"], XDG_CACHE_HOME=places["cache"])
  process = subprocess.Popen(command, env=own, cwd=places["cwd"], stderr=subprocess.DEVNULL)
  until(lambda: steps(remote) or process.poll() is not None)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL and 0 < max(steps(remote)) < STEPS

  # No copy of anything is kept here: a process that is killed removes nothing.
  left = [p for folder in places.values() for p in folder.rglob("*") if p.is_file()]
  caches = tuple(str(places["cache"] / name) for name in
                 ("condseg_jax/xla", "condseg_jax/onednn", "matplotlib"))
  assert not [p for p in left if not str(p).startswith(caches)]
  # Every chunk is read once and then kept in memory, whose size is bounded.
  chunks = Counter({path: n for path, n in moto.reads(before, "/data/").items() if "/c/" in path})
  assert 12 <= len(chunks) <= 16 and set(chunks.values()) == {1}, chunks
  assert 10_000 < moto.relay.sent - sent < 2_000_000

  lease = epath.Path(remote) / ".lease"  # of the killed process, which would have to get stale
  assert json.loads(lease.read_text())["renewed"] > 0
  lease.unlink()
  assert train.main(arguments(root, remote, f"{run}/data", **more)) == 0
  assert max(steps(remote)) == STEPS
  assert same(variables(remote), variables(local / "run"))


def test_a_run_outlives_its_server(moto, run, root, tmp_path):
  """The server goes while checkpoints are written, and comes back for the same command."""
  workdir = f"{run}/outage"
  command = arguments(root, workdir, f"{run}/data", **{"train.steps": STEPS})
  process = subprocess.Popen(
      [sys.executable, "-m", "condseg_jax.cli.train", *command[1:]], cwd=tmp_path, text=True,
      stderr=subprocess.PIPE, env=environment(AWS_MAX_ATTEMPTS="1"))
  until(lambda: steps(workdir) or process.poll() is not None)
  moto.relay.cut()
  try:
    _, said = process.communicate(timeout=300)
  finally:
    moto.relay.start()
  lines = [line for line in said.splitlines() if not line[:2].isdigit()]  # what is not logged
  assert process.returncode == 1 and len(lines) == 1, said
  assert lines[0].startswith("train: s3://") and "the server does not answer" in lines[0]
  assert 0 < max(steps(workdir)) < STEPS
  (epath.Path(workdir) / ".lease").unlink(missing_ok=True)
  assert train.main(command) == 0 and max(steps(workdir)) == STEPS


def test_images_and_results_in_buckets(moto, run, root, tmp_path, capsys):
  buckets.connect(run)
  scans = sorted((root / "test" / "imagesTr").iterdir())
  for path in scans:
    (epath.Path(run) / "scans" / path.name).write_bytes(path.read_bytes())
  command = ["condseg-predict", f"--workdir={run}/run", "--force", "--nopicture"]
  remote = [*command, f"--input={run}/scans", f"--output={run}/masks", "--report"]
  assert predict.main(remote) == 0
  said = capsys.readouterr().out
  assert f"{run}/masks/case_08.nii.gz" in said and "condseg-" not in said
  assert predict.main([*command, f"--input={scans[0].parent}", f"--output={tmp_path}"]) == 0
  masks = epath.Path(run) / "masks"
  for name in ("case_08.nii.gz", "case_09.nii.gz"):
    assert (masks / name).read_bytes() == (tmp_path / name).read_bytes()
  assert {p.name for p in masks.iterdir()} == {p.name for p in tmp_path.iterdir()
                                               if not p.name.startswith(".")} | {"report.html"}
  cases = json.loads((masks / "run.json").read_text())["cases"]
  assert cases["case_08"]["input"]["file"] == f"{run}/scans/case_08.nii.gz"

  assert predict.main([*remote, "--continue"]) == 0  # knows what is done, also of a former run
  assert capsys.readouterr().out.count("already done") == 2
  (masks / "case_08.nii.gz").unlink()
  assert predict.main([*remote, "--continue"]) == 0
  assert capsys.readouterr().out.count("already done") == 1
  assert (masks / "case_08.nii.gz").read_bytes() == (tmp_path / "case_08.nii.gz").read_bytes()

  assert predict.main([*command, f"--input={run}/scans", f"--output={run}/scans/"]) == 2
  assert "is the folder of the input images" in capsys.readouterr().err


def test_bundle_and_evaluation_in_buckets(run, root, capsys):
  buckets.connect(run)
  bundle = f"{run}/model.condseg"
  assert export.main(["condseg-export", f"--workdir={run}/run", f"--out={bundle}"]) == 0
  ours, theirs = condseg_jax.load(bundle), condseg_jax.load(f"{run}/run")
  assert same(ours.variables, theirs.variables) and ours.step == theirs.step
  command = ["condseg-evaluate", f"--workdir={bundle}", "--report"]
  assert evaluate.main([*command, f"--data={run}/data/ball", f"--out={run}/scores"]) == 0
  assert f"report: {run}/scores/report.html" in capsys.readouterr().out
  scores = epath.Path(run) / "scores"
  assert json.loads((scores / "summary.json").read_text())["n_cases"] > 0
  assert "<html" in (scores / "report.html").read_text()[:2000].lower()
  assert (scores / "cases.csv").exists()


def test_records_of_a_run_in_a_bucket(run):
  workdir = epath.Path(run) / "run"
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert sorted({line["step"] for line in lines}) == [2, 3, 4, 6]
  assert json.loads((workdir / "run.json").read_text())["status"] == "finished"
  events = list((workdir / "tensorboard").iterdir())
  assert len(events) == 1 and events[0].stat().length > 1000
  assert not (workdir / ".lease").exists()
