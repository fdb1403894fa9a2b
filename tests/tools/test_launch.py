"""The launch examples: what they start, as far as that can be seen without a cluster."""

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
  """Runs a script where some programs only say how they were called; all that they said."""
  for name in programs:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{name} $XLA_FLAGS $*" >> {folder / "said"}\n')
    path.chmod(0o755)
  (folder / ".venv" / "bin").mkdir(parents=True)
  (folder / ".venv" / "bin" / "activate").touch()
  path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
  subprocess.run(["bash", LAUNCH / script, *arguments], cwd=folder, check=True,
                 env={**os.environ, "PATH": path, "XLA_FLAGS": ""})
  return (folder / "said").read_text()


def test_slurm(tmp_path):
  said = started(tmp_path, "slurm.sh", ["srun"], *ARGUMENTS)
  assert said.split()[-6:] == ["condseg-train", *COMMAND]
  head = (LAUNCH / "slurm.sh").read_text()
  # One process for each GPU, or jax would give several processes the same ones.
  count = {re.search(f"#SBATCH --{what}-per-node=(.+)", head)[1] for what in ("gpus", "ntasks")}
  assert len(count) == 1


@pytest.mark.slow
def test_the_flags_of_slurm_are_known_to_xla(tmp_path):
  """XLA ends a program that names one it does not know."""
  flags = re.findall(r"--xla_\w+=\w+", started(tmp_path, "slurm.sh", ["srun"], *ARGUMENTS))
  assert flags
  code = "import jax; jax.devices()"
  for given, works in ((flags, True), ([*flags, "--xla_no_such_flag=1"], False)):
    process = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL,
                             env={**os.environ, "JAX_PLATFORMS": "cpu",
                                  "XLA_FLAGS": " ".join(given)})
    assert (process.returncode == 0) is works


def test_tpu_pod(tmp_path):
  said = started(tmp_path, "tpu_pod.sh", ["gcloud", "git"], "my-tpu", "my-zone", *ARGUMENTS)
  copied, run = re.findall(r"^gcloud.*?(?=^gcloud|\Z)", said, re.DOTALL | re.MULTILINE)
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
  # The machines of the slice, and a batch that its chips can share.
  a, b = map(int, job["template"]["spec"]["nodeSelector"]
             ["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert a * b == chips * job["completions"]
  batch = next(c for c in container["command"] if "batch_size" in c)
  assert int(batch.partition("=")[2]) % (a * b) == 0
