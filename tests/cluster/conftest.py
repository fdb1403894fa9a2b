"""One real cluster for all tests: a scheduler and two worker processes on this machine."""

import os
from pathlib import Path
import textwrap

import pytest

from support.tiny import write_datasets

# Runs in every worker before its first task: a file of this name ends whoever reads it.
PRELOAD = textwrap.dedent("""
    import os
    import signal

    def dask_setup(worker):
      from condseg_jax.formats import files
      read = files.read_volume

      def deadly(path, *arguments):
        if "deadly" in str(path):
          os.kill(os.getpid(), signal.SIGKILL)
        return read(path, *arguments)
      files.read_volume = deadly
    """)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
  """A `SpecCluster`, as `--cluster=local:2` starts it; its address is `scheduler_address`."""
  import dask

  from condseg_jax.cluster import start

  preload = tmp_path_factory.mktemp("preload") / "deadly.py"
  preload.write_text(PRELOAD)
  before = os.environ.copy()
  # As tests/conftest.py sets this process, so that equal programs are compiled, and found.
  os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "2",
                 "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  try:
    with dask.config.set({"distributed.worker.preload": [str(preload)]}), start.local(2) as started:
      yield started
  finally:
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="session")
def address(cluster):
  return cluster.scheduler_address


@pytest.fixture(scope="session")
def root(tmp_path_factory):
  return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run() -> Path:
  """A bundle of a tiny network for balls and boxes, trained for a few steps."""
  return Path(__file__).parent.parent / "golden" / "version_1" / "model.condseg"
