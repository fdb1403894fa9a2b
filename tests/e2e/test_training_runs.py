"""Whole runs: stopped and resumed, on two processes, killed, and with nothing to resume."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import condseg_jax
from condseg_jax.cli.train import main
from condseg_jax.errors import InputError
from condseg_jax.system.lock import held
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.parallel import join
from support.tiny import overrides
from support.tiny import write_datasets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return write_datasets(tmp_path_factory.mktemp("data"))


def arguments(root, workdir, **changes):
  changes = {"data.cache": root / "cache"} | changes
  return ["condseg-train", "--config=base", f"--workdir={workdir}", *overrides(root, **changes)]


def parameters(workdir):
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    return jax.device_get(checkpoints.restore_variables(checkpoints.pick("last")))["params"]
  finally:
    checkpoints.close()


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
  """A run of six steps; who changes it takes a copy."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  assert main(arguments(root, workdir)) == 0
  return workdir


def differences(a, b):
  return [np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def environment(devices=2):
  return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


@pytest.mark.slow
@pytest.mark.parametrize("driver, mechanism", [("jit", "batch_norm"), ("pmap", "channel")])
def test_stop_and_resume_is_bit_for_bit_the_same(driver, mechanism, root, tmp_path):
  """6 steps in one go equal 3, a new process's worth of objects, and 3 more."""
  changes = {"train.driver": driver, "train.steps": 6, "conditioning.mechanism": mechanism}
  assert main(arguments(root, tmp_path / "whole", **changes)) == 0
  # The schedule must know the length of the whole run, so the first half is cut by a signal.
  half = arguments(root, tmp_path / "parts", **changes)
  calls = []

  def stop(*_, **__):
    calls.append(None)
    return len(calls) == 3

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("condseg_jax.train.timing.Interrupt.everywhere", stop)
    assert main(half) == 0
  run = json.loads((tmp_path / "parts" / "run.json").read_text())
  assert (run["status"], run["step"]) == ("interrupted", 3)
  assert main([*half, "--resume=must"]) == 0
  assert max(differences(parameters(tmp_path / "whole"), parameters(tmp_path / "parts"))) == 0.0

  def losses(name):
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}
  assert losses("whole")[6] == losses("parts")[6]


def test_records(finished):
  run = json.loads((finished / "run.json").read_text())
  assert run["status"] == "finished" and run["skipped_steps"] == 0
  assert run["devices"]["devices"] == 2 and "jax" in run["versions"]
  assert list((finished / "tensorboard").iterdir())
  lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
  assert {"dice/ball", "dice/box", "learning_rate"} <= set(lines[0])
  assert [line["step"] for line in lines if "held_out/mean_dice" in line] == [3, 6]


def test_a_finished_run_asked_again_builds_nothing(root, finished, tmp_path, monkeypatch):
  run = shutil.copytree(finished, tmp_path / "run")
  before = {p: p.read_bytes() for p in run.glob("*.json*")}

  def built(*_, **__):
    raise AssertionError("the step was built")

  with monkeypatch.context() as patch:
    patch.setattr("condseg_jax.train.loop.make_step_and_state", built)
    assert main(arguments(root, run)) == 0
    assert {p: p.read_bytes() for p in run.glob("*.json*")} == before
    # Killed before its record was whole: it is made good.
    (run / "run.json").write_text('{"status": "running"}')
    with pytest.raises(AssertionError, match="was built"):
      main(arguments(root, run))
  assert main(arguments(root, run)) == 0
  assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(root, finished, tmp_path, capsys):
  run = shutil.copytree(finished, tmp_path / "run")
  (run / "run.json").write_text('{"status": "running"}')
  for path in (run / "checkpoints" / "6" / "state").rglob("d/*"):
    path.write_bytes(b"")
  assert main([*arguments(root, run), "--resume=must"]) == 1
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert "checkpoints/6: is damaged" in said and "use checkpoint 3; to resume" in said
  with pytest.raises(InputError, match="checkpoints/6: is damaged"):
    condseg_jax.load(run)
  assert condseg_jax.load(run, "3").step == 3
  assert main([*arguments(root, run), "--resume=last_whole"]) == 0
  assert max(differences(parameters(finished), parameters(run))) == 0
  assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_a_workdir_belongs_to_one_training(root, finished, tmp_path, capsys):
  run = shutil.copytree(finished, tmp_path / "run")
  with held(run):
    assert main(arguments(root, run)) == 1
  assert "run: is in use by process" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 400 kB; only root may mount one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("a small file system cannot be mounted here")
  yield folder
  subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(root, small_disk, capfd):
  changes = {"train.steps": 12, "train.eval_every": 1}
  assert main(arguments(root, small_disk / "run", **changes)) == 1
  lines = capfd.readouterr().err.splitlines()
  assert "run/checkpoints: cannot be written: no space left on device (" in lines[-1]
  assert not [line for line in lines if "Error" in line or "Traceback" in line]
  run = json.loads((small_disk / "run" / "run.json").read_text())
  assert run["status"] in ("failed", "running")  # the latter where it could not be written, either
  subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
  assert main(arguments(root, small_disk / "run", **changes)) == 0
  lines = (small_disk / "run" / "metrics.jsonl").read_text().splitlines()
  assert len([line for line in lines if "held_out/mean_dice" in line]) == 12


def test_a_run_that_diverges_fails_by_name(root, tmp_path, capsys):
  """A network whose parameters have overflowed learns nothing more, and is not saved."""
  changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 100.0, "optimizer.clip_norm": 0.0,
             "model.norm": "none", "train.steps": 300, "train.eval_every": 300}
  assert main(arguments(root, tmp_path, **changes)) == 1
  assert "has not been finite for the last 5" in capsys.readouterr().err
  assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
  assert Checkpoints(tmp_path, read_only=True).last_step is None


@pytest.mark.slow
def test_a_run_in_less_memory_and_with_deep_supervision(root, tmp_path):
  """Trained in parts of batches, on blocks computed again; goes on without either; predicts."""
  changes = {"model.strides": "((1,2,2),(2,2,2))", "model.layers_per_level": "(1,1,1)",
             "data.batch_size": 4, "model.deep_supervision": 1, "model.remat": True,
             "train.grad_accum_steps": 2,
             "train.steps": 2}
  assert main(arguments(root, tmp_path, **changes)) == 0
  assert {"head", "coarse_heads_0"} <= set(parameters(tmp_path))
  changes |= {"model.remat": False, "train.grad_accum_steps": 1, "train.steps": 3}
  assert main([*arguments(root, tmp_path, **changes), "--resume=must"]) == 0
  assert json.loads((tmp_path / "run.json").read_text())["step"] == 3
  volume = condseg_jax.read(next((root / "test" / "imagesTr").glob("*.nii.gz")))
  label = condseg_jax.load(tmp_path).predict(volume).label
  assert label.array.shape == volume.array.shape


def test_nothing_written_is_lost(root, finished, tmp_path, capsys):
  assert main([*arguments(root, tmp_path / "a"), "--resume=must"]) == 1
  assert "no checkpoint to resume from" in capsys.readouterr().err
  shutil.copytree(finished, tmp_path / "b")
  before = parameters(finished)
  assert main([*arguments(root, tmp_path / "b"), "--resume=never"]) == 1
  assert main(arguments(root, tmp_path / "b", **{"model.channels": 16})) == 1
  assert "another model (model.channels differs)" in capsys.readouterr().err
  assert main(arguments(root, tmp_path / "b", **{"data.subvolume": "(8,8,16)"})) == 1
  assert "was started with subvolume (8, 16, 16), now" in capsys.readouterr().err
  assert main(arguments(root, tmp_path / "b", **{"data.spacing": "(2.0,1.0,2.0)"})) == 1
  assert "was started with spacing (2.0, 1.0, 1.0), now" in capsys.readouterr().err
  assert max(differences(before, parameters(tmp_path / "b"))) == 0
  assert json.loads((tmp_path / "b" / "run.json").read_text())["step"] == 6


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(root, tmp_path):
  command = [sys.executable, "-m", "condseg_jax.cli.train",
             *arguments(root, tmp_path, **{"train.steps": 5000, "train.eval_every": 5000})[1:]]
  with open(tmp_path / "log", "w+") as log:
    process = subprocess.Popen(command, env=environment(), stderr=log, stdout=log)
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists():
      assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
      time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
  run = json.loads((tmp_path / "run.json").read_text())
  assert run["status"] == "interrupted" and 0 < run["step"] < 5000
  assert Checkpoints(tmp_path, read_only=True).last_step == run["step"]


CLUSTER = {"data.batch_size": 4, "optimizer.name": "sgd", "optimizer.schedule": "constant",
           "optimizer.learning_rate": 0.3, "loss.bce_weight": 0.0, "train.log_every": 1}


def cluster(root, workdir, *more, slurm=False, **changes):
  """Trains with a real cluster of two processes with two devices each; their messages.

  They find each other by flags, or as jax detects it on a SLURM cluster.
  """
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  processes = []
  for i in range(2):
    command = [sys.executable, "-m", "condseg_jax.cli.train",
               *arguments(root, workdir, **CLUSTER | changes)[1:], "--distributed", *more]
    known = environment()
    if slurm:
      known |= {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
                "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port)}
    else:
      command += [f"--coordinator=localhost:{port}", "--processes=2", f"--process_id={i}"]
    processes.append(subprocess.Popen(command, env=known, stderr=subprocess.PIPE, text=True))
  try:
    messages = [p.communicate(timeout=400)[1] for p in processes]
  finally:
    for p in processes:
      p.kill()
  assert [p.returncode for p in processes] == [0, 0], "\n".join(messages)
  return messages


def logged(workdir, key):
  """Step → value in metrics.jsonl."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line[key] for line in lines if key in line}


def test_distributed_where_there_is_no_cluster(root, tmp_path):
  """One line, and before any data is read."""
  command = [sys.executable, "-m", "condseg_jax.cli.train", *arguments(root, tmp_path)[1:]]
  for more, said in (["--distributed"], "found no cluster"), (["--processes=2"], "no effect alone"):
    process = subprocess.run([*command, *more], env=environment(), capture_output=True, text=True)
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1
    assert said in process.stderr
  with pytest.raises(InputError, match="'localhost' is not HOST:PORT"):
    join("localhost", 2, 0)


@pytest.mark.slow
def test_a_cluster_of_four_devices_equals_one_process(root, tmp_path):
  """Both drivers, three steps each; one device goes on from, and predicts with, what four wrote."""
  one, jit, pmap = (tmp_path / name for name in ("one", "jit", "pmap"))
  assert main(arguments(root, one, **CLUSTER)) == 0
  messages = cluster(root, jit, **{"train.steps": 3})
  assert ["held out: " in m for m in messages] == ["loss " in m for m in messages] == [True, False]
  shutil.copytree(jit, pmap)
  cluster(root, pmap, "--resume=must", slurm=True, **{"train.driver": "pmap"})
  assert main([*arguments(root, jit, **CLUSTER), "--resume=must"]) == 0

  run = json.loads((pmap / "run.json").read_text())
  assert run["devices"]["processes"] == 2 and run["devices"]["devices"] == 4
  assert len(logged(one, "loss")) == 6 and len(logged(one, "held_out/mean_dice")) == 2
  for workdir in (jit, pmap):
    assert logged(workdir, "loss") == pytest.approx(logged(one, "loss"), abs=1e-5)
    scores = logged(workdir, "held_out/mean_dice")
    assert scores == pytest.approx(logged(one, "held_out/mean_dice"), abs=1e-3)
    # Steps are about 0.01 long; Adam makes more of roundings, which differ between processors.
    assert max(differences(parameters(one), parameters(workdir))) < 1e-4
  assert min(logged(one, "held_out/mean_dice").values()) > 0.01
  predictors = [condseg_jax.load(workdir) for workdir in (one, pmap)]
  for leaf in jax.tree.leaves(predictors[1].variables):
    assert len(leaf.devices()) == 1
  volume = condseg_jax.read(next((root / "test" / "imagesTr").glob("*.nii.gz")))
  a, b = (p.predict(volume).label.array for p in predictors)
  assert np.mean(a == b) > 0.999


@pytest.mark.slow
def test_the_automatic_plan_trains_resumes_and_predicts(root, tmp_path):
  """Subvolume and strides follow from data and memory, and stay when the run goes on."""
  changes = {"data.plan": "auto", "data.memory_gb": 0.05, "model.strides": None,
             "model.layers_per_level": None, "data.subvolume": None, "train.steps": 2}
  assert main(arguments(root, tmp_path / "run", **changes)) == 0
  tree = json.loads((tmp_path / "run" / "plan.json").read_text())
  assert 0 < tree["memory_gb"] <= 0.05 and set(tree["datasets"]) == {"ball", "box"}
  assert tree["largest_subvolume"] == tree["plan"]["subvolume"]
  assert tree["bytes_per_voxel"] * np.prod(tree["largest_subvolume"]) < 1e9 * tree["memory_gb"]
  checkpoints = Checkpoints(tmp_path / "run", read_only=True)
  record = checkpoints.read_record(2)
  checkpoints.close()
  assert list(record.plan.subvolume) == tree["plan"]["subvolume"]
  assert [list(s) for s in record.config.model.strides] == tree["strides"]
  assert len(record.config.model.layers_per_level) == len(tree["strides"]) + 1
  # More memory now: what was decided stays decided.
  changes |= {"data.memory_gb": 50.0, "train.steps": 3}
  assert main(arguments(root, tmp_path / "run", **changes)) == 0
  assert json.loads((tmp_path / "run" / "plan.json").read_text())["plan"] == tree["plan"]
  image = next((root / "test" / "imagesTr").glob("*.nii.gz"))
  volume = condseg_jax.read(image)
  label = condseg_jax.load(tmp_path / "run").predict(volume).label
  assert label.array.shape == volume.array.shape


@pytest.mark.slow
def test_a_subvolume_that_does_not_fit_is_split_over_the_devices(root, finished, tmp_path, said):
  changes = {"train.partition": 0, "data.memory_gb": 0.001}
  assert main(arguments(root, tmp_path, **changes)) == 0
  assert any("each subvolume split over 2 devices" in line for line in said())
  whole, split = (json.loads((run / "plan.json").read_text()) for run in (finished, tmp_path))
  assert (whole["partition"], split["partition"]) == (1, 2)
  assert logged(tmp_path, "loss") == pytest.approx(logged(finished, "loss"), abs=1e-3)
