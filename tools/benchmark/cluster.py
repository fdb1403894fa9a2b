"""Cases on a Dask cluster of this machine against processes with --num_parts; the cost of a task.

Peer is the same folder of images in two processes with --num_parts=2, started together. On a
machine with fewer than two free cores this compares what is spent, not how work spreads.
"""


from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import shutil
import statistics
import time

from condseg_jax.cluster.connect import connected
from condseg_jax.cluster.tasks import each
from tools.benchmark import startup

TASKS = 300
COPIES = 2  # of the test images
ROUNDS = 3
SIZE = "standard"
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

  def predict(*more: str) -> float:
    return startup.command("predict", f"--workdir={folder / 'run'}", f"--input={images}", "--force",
                           f"--output={folder / 'masks'}", "--nopicture", *more, cache=cache)

  def parts() -> float:
    start = time.time()
    with ThreadPoolExecutor(2) as pool:
      list(pool.map(lambda part: predict("--num_parts=2", f"--part={part}"), range(2)))
    return time.time() - start

  predict()  # compiles
  ours, peer, alone = [], [], []
  for _ in range(ROUNDS):
    ours.append(predict("--cluster=local:2"))
    peer.append(parts())
    alone.append(predict())
  medians = list(map(statistics.median, (ours, peer, alone)))
  note = f"{count} images, {len(os.sched_getaffinity(0))} core(s), start included"
  return [
      {"name": "predict, local:2 against --num_parts=2", "ours": medians[0], "peer": medians[1],
       "ratio": medians[1] / medians[0], "unit": "s", "note": note},
      {"name": "predict, one process", "ours": medians[2], "peer": None, "ratio": None, "unit": "s",
       "note": note},
      *_tasks()]


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
