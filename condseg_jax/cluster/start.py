"""Starts clusters of worker processes: on this machine, or as jobs of SLURM."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import inspect
import logging
import os
from pathlib import Path
import shutil
from typing import TYPE_CHECKING

from condseg_jax.cluster.tasks import GPU
from condseg_jax.errors import InputError

if TYPE_CHECKING:  # an extra
  from distributed.deploy.spec import SpecCluster

# Deaths of workers after which a task is given up, less one: the third is the last.
ALLOWED_FAILURES = 2
PLAIN = {
    # By default Dask gives a process one thread of OpenMP, as it runs many tasks in one; here a
    # process runs one task at a time, with the threads that it has without Dask.
    "distributed.nanny.pre-spawn-environ": {}, "distributed.worker.profile.enabled": False,
    # By default a worker that is missing 15 seconds after it was lost is given up for good, even if
    # it was back meanwhile, and is restarted again after another loss.
    "distributed.deploy.lost-worker-timeout": "1000 days"}


@contextlib.contextmanager
def local(count: int) -> Iterator[SpecCluster]:
  """Starts worker processes on this machine, which end with the context; see `gpus`."""
  import dask
  from distributed import Nanny
  from distributed import Scheduler
  from distributed import SpecCluster

  devices = gpus()
  common = {"host": "127.0.0.1", "nthreads": 1, "memory_limit": 0, "dashboard": False,
            "silence_logs": logging.CRITICAL}

  def worker(number: int) -> dict[str, object]:
    own = devices[number:number + 1]
    extra = {"env": {"CUDA_VISIBLE_DEVICES": ",".join(own)}} if devices else {}
    return {"cls": Nanny, "options": common | extra | {"resources": {GPU: 1} if own else {}}}

  scheduler = {"cls": Scheduler, "options": {
      "host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0",
      "allowed_failures": ALLOWED_FAILURES}}
  with dask.config.set(PLAIN), SpecCluster(
      workers={number: worker(number) for number in range(count)}, scheduler=scheduler,
      silence_logs=logging.CRITICAL) as cluster:
    yield cluster


def gpus() -> list[str]:
  """Returns the NVIDIA GPUs of this machine, one for each of the first processes, as CUDA names
  them; without importing what would take their memory.
  """
  named = os.environ.get("CUDA_VISIBLE_DEVICES")
  if named is not None:
    return [name for name in named.split(",") if name.strip() and name.strip() != "-1"]
  found = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
  return sorted(found, key=lambda name: (len(name), name))


@contextlib.contextmanager
def slurm(path: str) -> Iterator[SpecCluster]:
  """Starts the scheduler here and workers as jobs of SLURM, which end with the context.

  Args:
    path: YAML file: `jobs`, the number of jobs, and arguments of `dask_jobqueue.SLURMCluster`.

  Raises:
    InputError: an unusable file, or no SLURM on this machine.
  """
  try:
    from dask_jobqueue import SLURMCluster
  except ImportError as error:
    raise InputError("slurm", "needs dask-jobqueue", 'pip install "condseg-jax[cluster]"',
                     usage=True) from error
  jobs, options = read_options(path)
  for name in options:
    if name not in _arguments(SLURMCluster):
      raise InputError(path, f"has the unknown key {name!r}", "see the arguments of "
                       "dask_jobqueue.SLURMCluster", usage=True)
  if shutil.which("sbatch") is None:
    raise InputError("slurm", "sbatch is not on this machine", "run the command on a login node",
                     usage=True)
  options = {"log_directory": None, **options, "processes": 1, "silence_logs": logging.CRITICAL}
  # OpenMP as in `PLAIN`.
  options["job_script_prologue"] = ["export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON='{}'",
                                    *(options.get("job_script_prologue") or ())]
  options["scheduler_options"] = {"allowed_failures": ALLOWED_FAILURES, "dashboard": False,
                                  "dashboard_address": ":0",
                                  **(options.get("scheduler_options") or {})}
  try:
    cluster = SLURMCluster(**options)
  except (ValueError, TypeError, OSError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise InputError(path, f"is not accepted: {reason}", "see docs/cluster.md") from error
  with cluster:
    try:
      cluster.scale(jobs=jobs)
      cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)  # replaces those that end
    except RuntimeError as error:  # sbatch has failed
      lines = [line.strip() for line in str(error).splitlines() if line.strip()]
      raise InputError("sbatch", f"has failed: {lines[-1]}", f"check {path}") from error
    yield cluster


def read_options(path: str) -> tuple[int, dict]:
  """Reads a file of options for SLURM; returns the number of jobs and the other options.

  Raises:
    InputError: the file is unreadable, no mapping, or without a number of jobs.
  """
  import yaml
  try:
    with open(path, encoding="utf-8") as stream:
      options = yaml.safe_load(stream)
  except OSError as error:
    raise InputError(path, f"cannot be read: {error.strerror or error}", "check the path",
                     usage=True) from error
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    raise InputError(path, f"is not valid YAML: {' '.join(str(error).split())}",
                     "correct the file", usage=True) from error
  if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
    raise InputError(path, "is not a mapping", "see docs/cluster.md", usage=True)
  jobs = options.get("jobs")
  if type(jobs) is not int or jobs < 1:
    raise InputError(path, f"has the number of jobs {jobs!r}", "e.g. jobs: 4", usage=True)
  return jobs, {name: value for name, value in options.items() if name != "jobs"}


def _arguments(cluster: type) -> set[str]:
  """Returns the arguments that a cluster of jobs takes from a file."""
  from dask_jobqueue.slurm import SLURMJob
  names = {name for one in (*cluster.__mro__, *SLURMJob.__mro__)
           for name in inspect.signature(one).parameters}
  return names - {"self", "args", "kwargs", "n_workers", "processes", "asynchronous", "loop",
                  "job_cls", "scheduler_cls"}
