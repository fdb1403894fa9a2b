"""What every test stands on: two CPU devices, strict arithmetic, real data where it is."""

import os
from pathlib import Path

# Before jax reads it: nothing of the user's is found, or left, there.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)


def _own_cores() -> None:
  """Gives every worker of pytest-xdist cores of its own: thread pools that share them wait."""
  worker, count = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get(
      "PYTEST_XDIST_WORKER_COUNT")
  if worker and count and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores)::int(count)])


_own_cores()  # before jax counts them

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs run once here, so that most of the time would go into optimising them.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def real_data() -> Path:
  """Folder of the real datasets; without it the test is skipped and the summary says so."""
  folder = os.environ.get("CONDSEG_TEST_DATA", "")
  if not folder or not Path(folder).is_dir():
    pytest.skip("real data: CONDSEG_TEST_DATA names no folder")
  return Path(folder)


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path_factory, monkeypatch):
  """Nothing is written to, or read from, the user's cache folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
