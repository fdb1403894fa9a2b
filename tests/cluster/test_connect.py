"""Addresses, schedulers that cannot be used, TLS, and jobs of SLURM: one line each."""

import gc
import json
import os
from pathlib import Path
import socket
import stat
import subprocess
import sys
import threading
import time
import warnings

import dask
from distributed import LocalCluster
from distributed.security import Security
import pytest

from condseg_jax.cli import evaluate
from condseg_jax.cli import predict
from condseg_jax.cluster import connect
from condseg_jax.cluster import start
from condseg_jax.cluster.address import Address
from condseg_jax.cluster.address import parse
from condseg_jax.cluster.connect import connected
from condseg_jax.cluster.tasks import each
from condseg_jax.errors import InputError
from support import deaths
from support.tls import make_certificate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def soon(monkeypatch):
  """Gives up at once."""
  monkeypatch.setattr(connect, "CONNECT_SECONDS", 1.0)


def refused(text: str) -> InputError:
  with pytest.raises(InputError) as caught, connected(text):
    pass
  assert "\n" not in str(caught.value)
  return caught.value


@pytest.mark.parametrize(("text", "address"), [
    ("local:4", Address("local", "4")),
    ("tcp://node-7.lab", Address("scheduler", "tcp://node-7.lab:8786")),
    ("tcp://10.0.0.5:9000", Address("scheduler", "tcp://10.0.0.5:9000")),
    ("tls://[fe80::1]:8786", Address("scheduler", "tls://[fe80::1]:8786")),
    ("slurm:jobs/gpu.yaml", Address("slurm", "jobs/gpu.yaml"))])
def test_addresses(text, address):
  assert parse(text) == address


@pytest.mark.parametrize("text", [
    "local", "local:", "local:0", "local:-1", "local:two", "local:9999", "tcp://", "tcp://host:0",
    "tcp://host:99999", "tcp://host:80/path", "tcp://a b", "http://host:8787", "host:8786",
    "slurm:", "slurm:gpu.txt", "inproc://1", "kubernetes:x", "\n", "tcp://-x"])
def test_what_is_no_address_is_wrong_usage(text, capsys):
  assert refused(text).usage
  for command, more in ((predict, ("--input=x", "--output=y")),
                        (evaluate, ("--data=x", "--out=y"))):
    assert command.main(["condseg-x", "--workdir=missing", f"--cluster={text}", *more]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_parts_and_servers_do_not_go_with_a_cluster(capsys):
  common = ["condseg-predict", "--workdir=RUN", "--output=out", "--cluster=local:2"]
  assert predict.main([*common, "--input=images", "--num_parts=2"]) == 2
  assert "--num_parts" in capsys.readouterr().err
  assert predict.main([*common, "--input=dicomweb+http://x/y?StudyInstanceUID=1.2"]) == 2
  assert "a folder that all machines share as --input" in capsys.readouterr().err


def test_without_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "distributed", None)
  error = refused("tcp://127.0.0.1:8786")
  assert "needs Dask" in str(error) and 'pip install "condseg-jax[cluster]"' in str(error)


@pytest.mark.slow
def test_without_the_flag_nothing_of_dask_is_imported(run, root, tmp_path):
  code = ("import sys; from condseg_jax.cli.predict import main; code = main(sys.argv[1:]); "
          "found = {n.partition('.')[0] for n in sys.modules}; "
          "sys.exit(code or bool(found & {'dask', 'distributed', 'dask_jobqueue'}))")
  done = subprocess.run(
      [sys.executable, "-c", code, "condseg-predict", f"--workdir={run}", "--nopicture",
       f"--input={root / 'test' / 'imagesTr'}", f"--output={tmp_path}"],
      env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
      check=False, capture_output=True, encoding="utf-8")
  assert done.returncode == 0, done.stderr


def test_nobody_listens(soon):
  with socket.socket() as held:
    held.bind(("127.0.0.1", 0))  # and does not listen
    assert "no Dask scheduler can be reached" in str(refused(
        f"tcp://127.0.0.1:{held.getsockname()[1]}"))
  assert "no Dask scheduler can be reached" in str(refused("tcp://nowhere.invalid"))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_something_else_listens(answer, soon):
  with socket.create_server(("127.0.0.1", 0)) as server:
    held = []

    def accept():
      with pytest.raises(OSError):
        while True:
          held.append(server.accept()[0])
          held[-1].sendall(answer)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    assert "no Dask scheduler can be reached" in str(refused(
        f"tcp://127.0.0.1:{server.getsockname()[1]}"))
    server.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for one in held:
      one.close()


def test_a_scheduler_of_another_version(tmp_path):
  """Which says so of itself: the metadata that it reads first are not its own."""
  folder = tmp_path / "distributed-1.25.0.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: distributed\nVersion: 1.25.0\n")
  file = tmp_path / "scheduler.json"
  process = subprocess.Popen(
      [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0",
       "--no-dashboard", "--dashboard-address=127.0.0.1:0", f"--scheduler-file={file}"],
      env=os.environ | {"PYTHONPATH": str(tmp_path)}, stderr=subprocess.PIPE, encoding="utf-8")
  try:
    line = next(line for line in process.stderr if "Scheduler at:" in line)
    error = refused(line.split()[-1])
  finally:
    process.terminate()
    process.communicate()
  assert error.usage and "the scheduler has distributed 1.25.0, but this machine" in str(error)


@pytest.mark.slow
def test_a_scheduler_that_is_lost(tmp_path, capfd):
  """While its worker works; one line, and nothing of Dask's."""
  scheduler, worker = (["-m", f"distributed.cli.dask_{name}", "--no-dashboard"]
                       for name in ("scheduler", "worker"))
  file = tmp_path / "scheduler.json"
  env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
  processes = [subprocess.Popen([sys.executable, *scheduler, "--host=127.0.0.1", "--port=0",
                                 "--dashboard-address=127.0.0.1:0", f"--scheduler-file={file}"],
                                **quiet),
               subprocess.Popen([sys.executable, *worker, "--nthreads=1",
                                 f"--scheduler-file={file}"], **quiet)]

  def kill():
    while not any(tmp_path.glob("0.*")):
      time.sleep(0.02)
    processes[0].kill()

  try:
    while not file.exists():
      time.sleep(0.05)
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with (pytest.raises(InputError, match="the scheduler has ended, or the connection"),
          connected(json.loads(file.read_text())["address"]) as cluster):
      list(each(cluster, deaths.leave_pid, [(tmp_path, n) for n in range(3)], list("abc")))
    thread.join(10)
  finally:
    for process in processes:
      process.kill()
      process.wait()
  assert "Traceback" not in capfd.readouterr().err


def test_tls_by_the_configuration_of_dask(tmp_path, soon):
  cert, key = map(str, make_certificate(tmp_path))
  pairs = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker")
           for part, path in (("cert", cert), ("key", key))}
  security = Security(tls_ca_file=cert, require_encryption=True, **pairs)
  with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tls://",
                    dashboard_address=None, security=security) as cluster:
    assert "no Dask scheduler can be reached" in str(refused(cluster.scheduler_address))
    own = {"distributed.comm.tls.ca-file": cert, "distributed.comm.tls.client.cert": cert,
           "distributed.comm.tls.client.key": key}
    with dask.config.set(own), connected(cluster.scheduler_address) as found:
      assert [o.value for o in each(found, deaths.double, [(4,)], ["a"])] == [8]


# Runs a job script at once, as SLURM does later; a stand-in, as no SLURM runs where tests do.
SBATCH = """#!/bin/sh
for script; do :; done
setsid sh "$script" > "{0}/log" 2>&1 &
echo $! >> "{0}/jobs"
echo "$@" >> "{0}/arguments"; cat "$script" >> "{0}/scripts"
echo "Submitted batch job $!"
"""
SCANCEL = '#!/bin/sh\necho "$@" >> "{0}/cancelled"\nkill -- "-$1"\n'


def test_jobs_of_slurm(tmp_path, monkeypatch):
  for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
    (tmp_path / name).write_text(text.format(tmp_path))
    (tmp_path / name).chmod(stat.S_IRWXU)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
  file = tmp_path / "gpu.yaml"
  file.write_text("jobs: 1\ncores: 2\nmemory: 4GB\nqueue: gpu\nwalltime: '01:00:00'\n"
                  "job_extra_directives: ['--gres=gpu:1']\n"
                  "worker_extra_args: ['--resources', 'GPU=1']\n"
                  "scheduler_options: {host: 127.0.0.1}\n")
  with connected(f"slurm:{file}") as cluster:
    outcomes = list(each(cluster, deaths.double, [(n,) for n in range(3)], list("abc"),
                         device=True))
  assert sorted(o.value for o in outcomes) == [0, 2, 4]
  script = (tmp_path / "scripts").read_text()
  assert "#SBATCH -p gpu" in script and "#SBATCH --gres=gpu:1" in script and "GPU=1" in script
  assert (tmp_path / "jobs").read_text().split() == (tmp_path / "cancelled").read_text().split()


@pytest.mark.parametrize(("text", "reason"), [
    ("jobs: [", "is not valid YAML"), ("- 1", "is not a mapping"), ("cores: 1", "number of jobs"),
    ("jobs: 0", "number of jobs"), ("jobs: 1\ncroes: 2", "unknown key 'croes'"),
    ("jobs: 1\nprocesses: 4", "unknown key 'processes'"), ("!!python/name:os.system x", "YAML"),
    ("jobs: 1", "is not accepted: You must specify how much cores")])
def test_bad_files_of_slurm(text, reason, tmp_path, monkeypatch):
  (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
  (tmp_path / "sbatch").chmod(stat.S_IRWXU)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  file = tmp_path / "jobs.yaml"
  file.write_text(text)
  assert reason in str(refused(f"slurm:{file}"))
  with warnings.catch_warnings():  # what Dask leaves of a cluster that it could not make
    warnings.simplefilter("ignore", ResourceWarning)
    gc.collect()
  assert "cannot be read" in str(refused(f"slurm:{tmp_path / 'missing.yaml'}"))


def test_a_machine_without_slurm(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  file = tmp_path / "jobs.yaml"
  file.write_text("jobs: 1\ncores: 1\nmemory: 1GB\n")
  assert "sbatch is not on this machine" in str(refused(f"slurm:{file}"))


def test_gpus_are_dealt_to_the_first_processes(monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a, ")
  assert start.gpus() == ["3", "GPU-5a"]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert start.gpus() == []
