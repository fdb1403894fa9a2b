"""Cases on a Dask cluster of this machine against processes with --num_parts; the cost of a task.

Peer is the same folder of images in two processes with --num_parts=2, started together. CPU time is
that of all processes. On a machine with fewer than two free cores, times of the clock do not show
how work spreads.
"""


from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import resource
import shutil
import statistics
import time

from condseg_jax.cluster.connect import connected
from condseg_jax.cluster.tasks import each
from tools.benchmark import startup

TASKS = 300
COPIES = 2  # of the test images
ROUNDS = 2
SIZE = "quick"
SETTINGS: tuple[str, ...] = ()  # --config.FIELD=VALUE of the training


def run(folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  cache, data = folder / "cache", folder / "phantoms"
  if not data.exists():
    startup.command("prepare", "--format=phantom", f"--size={SIZE}", f"--out={data}")
  startup.command("train", f"--config={startup.CONFIG}", f"--config.data.root={data / 'train'}",
                  f"--config.data.cache={folder / 'prepared'}", "--config.train.steps=1",
                  "--config.train.log_every=1", "--config.train.eval_every=1", *SETTINGS,
                  f"--workdir={folder / 'run'}", cache=cache)
  images = folder / "images"
  images.mkdir(exist_ok=True)
  for path in sorted((data / "test" / "imagesTr").glob("*.nii.gz")):
    for number in range(COPIES):
      shutil.copy(path, images / f"{number}_{path.name}")
  count = len(list(images.iterdir()))

  def predict(*more: str) -> None:
    startup.command("predict", f"--workdir={folder / 'run'}", f"--input={images}", "--force",
                    f"--output={folder / 'masks'}", "--nopicture", *more, cache=cache)

  def parts() -> None:
    with ThreadPoolExecutor(2) as pool:
      list(pool.map(lambda part: predict("--num_parts=2", f"--part={part}"), range(2)))

  predict()  # compiles
  ways = {"local:2": lambda: predict("--cluster=local:2"), "--num_parts=2": parts,
          "one process": predict}
  rounds = [{name: _timed(way) for name, way in ways.items()} for _ in range(ROUNDS)]
  note = f"{count} images, {len(os.sched_getaffinity(0))} core(s), start included"
  rows = []
  for index, kind in enumerate(("by the clock", "CPU time")):
    ours, peer, alone = (statistics.median(one[name][index] for one in rounds) for name in ways)
    rows += [{"name": f"predict, {kind}: local:2", "ours": ours, "peer": peer, "ratio": peer / ours,
              "unit": "s", "note": f"--num_parts=2; {note}"},
             {"name": f"predict, {kind}: one process", "ours": alone, "peer": None, "ratio": None,
              "unit": "s", "note": note}]
  return rows + _tasks()


def _timed(call: Callable[[], None]) -> tuple[float, float]:
  """Returns the seconds of a call by the clock, and the CPU time of its child processes."""
  used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
  start, before = time.perf_counter(), used()
  call()
  return time.perf_counter() - start, used() - before


def _tasks() -> list[dict]:
  """Returns the rows of tasks that do nothing."""
  start = time.perf_counter()
  with connected("local:2") as cluster:
    up = time.perf_counter()
    assert len(list(each(cluster, os.getpid, [()] * TASKS, ["none"] * TASKS))) == TASKS
    done = time.perf_counter()
  ended = time.perf_counter()
  empty = {"peer": None, "ratio": None}
  return [
      {"name": "a task that does nothing, local:2", "ours": 1e3 * (done - up) / TASKS, **empty,
       "unit": "ms", "note": f"mean of {TASKS}"},
      {"name": "local:2, start and end", "ours": up - start + ended - done, **empty, "unit": "s",
       "note": "before the first task and after the last"}]
