"""What every test stands on: two CPU devices, strict arithmetic, real data where it is."""

import atexit
import gc
import logging
import os
from pathlib import Path
import shutil
import tempfile


def _compile_fast() -> None:
  """Lets all workers and their subprocesses compile each program once, and without ambition."""
  if "PYTEST_XDIST_WORKER" not in os.environ:
    folder = tempfile.mkdtemp(prefix="condseg_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Programs run once here, so that most of the time would go into compiling them. The flags of
    # XLA exist in the pinned version of jaxlib.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["XLA_FLAGS"] = " ".join([
        os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1"])


_compile_fast()  # before jax reads it


def _own_cores() -> None:
  """Gives every worker of pytest-xdist cores of its own: thread pools that share them wait."""
  worker, count = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get(
      "PYTEST_XDIST_WORKER_COUNT")
  if worker and count and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % len(cores)::int(count)])


_own_cores()  # before jax counts them

# Programs and what they were traced from stay in memory; looking for garbage after every few
# hundred new objects would take a good part of the time.
gc.set_threshold(20_000, 10, 50)
MANY_FILES = 400  # open, after which it is looked for: some are closed only as garbage

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", os.environ.get("CONDSEG_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Fewer examples while working; CI, and whoever asks for it, takes those that the tests name.
hypothesis.settings.register_profile("ci", deadline=None)
hypothesis.settings.register_profile("dev", deadline=None, max_examples=20)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# The files that take longest. Workers take whole files, so these come first: the last one to begin
# would otherwise run alone.
LONGEST = ("e2e/test_federation", "cluster/test_predict", "buckets/test_runs", "tools/test_fuzz",
           "tools/test_notebooks", "e2e/test_training_runs", "serve/test_service",
           "export/test_onnx", "report/page/test_in_a_browser", "e2e/test_growth",
           "federated/test_site", "study/test_study_runs", "models/test_dense_unet",
           "serve/dimse/test_node", "test_configs", "tools/test_suites", "serve/test_app",
           "e2e/test_bring_your_own", "models/test_onednn", "train/test_step",
           "train/test_unlabelled", "models/test_blocks", "tools/test_startup", "serve/test_page",
           "serve/test_pacs", "docs/test_commands", "infer/test_full_volume",
           "cluster/test_connect", "models/test_network", "test_losses", "train/test_partition",
           "study/test_datasets", "e2e/test_folds", "golden/test_golden")


def pytest_collection_finish():
  """Leaves what is imported by now out of all further searches for garbage."""
  gc.freeze()


def pytest_collection_modifyitems(config, items):
  """With several workers, the longest files first; alone, as they are found."""
  if hasattr(config, "workerinput"):
    places = [str(Path(__file__).parent / f"{name}.py") for name in LONGEST]
    items.sort(key=lambda item: places.index(str(item.path)) if str(item.path) in places else 999)


@pytest.fixture(scope="session")
def real_data() -> Path:
  """Folder of the real datasets; without it the test is skipped and the summary says so."""
  folder = os.environ.get("CONDSEG_TEST_DATA", "")
  if not folder or not Path(folder).is_dir():
    pytest.skip("real data: CONDSEG_TEST_DATA names no folder")
  return Path(folder)


@pytest.fixture(autouse=True, scope="module")
def files_are_closed():
  """Collects sockets and files of processes before there are too many."""
  yield
  if Path("/proc/self/fd").exists() and len(os.listdir("/proc/self/fd")) > MANY_FILES:
    gc.collect()


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path_factory, monkeypatch):
  """Nothing is written to, or read from, the user's cache folder."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def said(caplog):
  """What the program logged."""
  logger = logging.getLogger("condseg_jax")
  logger.addHandler(caplog.handler)
  caplog.set_level(logging.INFO, logger.name)
  yield lambda: [record.getMessage() for record in caplog.records]
  logger.removeHandler(caplog.handler)
