"""The launch scripts, with stubs instead of a cluster."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest
import yaml

LAUNCH = Path(__file__).parent.parent.parent / "tools" / "launch"
ARGUMENTS = ("configs/mine.py", "DATA", "RUN", "--config.seed=1")
COMMAND = ["--distributed", "--config=configs/mine.py", "--config.data.root=DATA", "--workdir=RUN",
           "--config.seed=1"]


def started(folder, script, programs, *arguments):
  """Runs a script with stubs for some programs; returns their recorded calls."""
  for name in programs:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{name} $XLA_FLAGS $*" >> {folder / "calls"}\n')
    path.chmod(0o755)
  (folder / ".venv" / "bin").mkdir(parents=True)
  (folder / ".venv" / "bin" / "activate").touch()
  path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
  subprocess.run(["bash", LAUNCH / script, *arguments], cwd=folder, check=True,
                 env={**os.environ, "PATH": path, "XLA_FLAGS": ""})
  return (folder / "calls").read_text()


def test_slurm(tmp_path):
  calls = started(tmp_path, "slurm.sh", ["srun"], *ARGUMENTS)
  assert calls.split()[-6:] == ["condseg-train", *COMMAND]
  head = (LAUNCH / "slurm.sh").read_text()
  # One process per GPU; otherwise jax would assign the same GPU to several processes.
  count = {re.search(f"#SBATCH --{what}-per-node=(.+)", head)[1] for what in ("gpus", "ntasks")}
  assert len(count) == 1


@pytest.mark.slow
def test_the_flags_of_slurm_are_known_to_xla(tmp_path):
  """XLA aborts on an unknown flag."""
  flags = re.findall(r"--xla_\w+=\w+", started(tmp_path, "slurm.sh", ["srun"], *ARGUMENTS))
  assert flags
  code = "import jax; jax.devices()"
  for given, works in ((flags, True), ([*flags, "--xla_no_such_flag=1"], False)):
    process = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL,
                             env={**os.environ, "JAX_PLATFORMS": "cpu",
                                  "XLA_FLAGS": " ".join(given)})
    assert (process.returncode == 0) is works


def test_tpu_pod(tmp_path):
  calls = started(tmp_path, "tpu_pod.sh", ["gcloud", "git"], "my-tpu", "my-zone", *ARGUMENTS)
  copied, run = re.findall(r"^gcloud.*?(?=^gcloud|\Z)", calls, re.DOTALL | re.MULTILINE)
  assert "scp" in copied and "--worker=all" in copied
  assert "ssh my-tpu --zone=my-zone --worker=all" in run
  assert run.split()[-5:] == COMMAND


def test_gke():
  tree = yaml.safe_load((LAUNCH / "gke.yaml").read_text(encoding="utf-8"))
  (job,) = tree["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
  (container,) = job["template"]["spec"]["containers"]
  assert container["command"][:2] == ["condseg-train", "--distributed"]
  # The number of machines of the slice, and a batch that is divisible by its chips.
  a, b = map(int, job["template"]["spec"]["nodeSelector"]
             ["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert a * b == chips * job["completions"]
  batch = next(c for c in container["command"] if "batch_size" in c)
  assert int(batch.partition("=")[2]) % (a * b) == 0
