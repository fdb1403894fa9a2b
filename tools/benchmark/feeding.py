"""Input throughput: steps per second fed from the store, against one batch cached on the device.

Uses the trainer's own pipeline, placement and step, augmentation included. A ratio of 1 means that
the input costs nothing.
"""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path
import statistics
import time

import jax
import jax.numpy as jnp

from condseg_jax.config import Config
from condseg_jax.data import sampling
from condseg_jax.datasets import discover
from condseg_jax.losses import make_objective
from condseg_jax.train import parallel
from condseg_jax.train.setup import alphas
from condseg_jax.train.setup import lateral_axes
from condseg_jax.train.setup import make_setup
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step
from tools.benchmark import nets
from tools.benchmark.timing import best_row
from tools.benchmark.timing import not_measured
from tools.benchmark.timing import progress

# A small network for the CTs: the faster the step, the harder it is to feed.
CT = ("phantom", {"data": {"subvolume": (32, 96, 96), "classes": (), "presets": {}}})
READ_AHEAD = 6  # steps that the pipeline may have prefetched, run before the clock starts
STEPS, ROUNDS = 16, 5


def rows(folder: Path, cts: Path) -> list[dict]:
  """Returns the rows for the hippocampus, if its data is available, and for 512×512 CTs.

  Args:
    folder: folder for prepared data, which may contain hippocampus/.
    cts: store of the CTs.
  """
  name, source = "steps fed, hippocampus", hippocampus(folder)
  if source is None:
    row = not_measured(name, "CONDSEG_TEST_DATA or --data must contain hippocampus/")
  else:
    row = measure(name, nets.config_of("hippocampus"), source, folder / "prepared")
  shape = "x".join(map(str, CT[1]["data"]["subvolume"]))
  return [row, measure(f"steps fed, {shape} of 512x512 CTs", nets.config_of(*CT), cts,
                       folder / "prepared")]


def hippocampus(folder: Path) -> Path | None:
  """Returns the folder of MSD Task04 in `folder` or in CONDSEG_TEST_DATA, or None."""
  test_data = os.environ.get("CONDSEG_TEST_DATA")
  roots = [folder, *([Path(test_data)] if test_data else [])]
  return next((root / "hippocampus" for root in roots
               if (root / "hippocampus" / "dataset.json").exists()), None)


def measure(name: str, config: Config, root: Path, cache: Path) -> dict:
  """Times blocks of steps, alternating between batches of the pipeline and one cached batch.

  Args:
    name: of the row.
    config: of the training.
    root: dataset or store.
    cache: folder for prepared data.
  """
  progress(name)
  stores = discover.open_stores(root, config.data.spacing, cache, progress=False)
  setup = make_setup(config, stores, None, cache)
  config, model, table, plan = setup.config, setup.model, setup.record.table, setup.record.plan
  optimizer = make_optimizer(config.optimizer)
  step = make_train_step(
      model, optimizer, objective=make_objective(config.loss), spacing=plan.spacing,
      augmentation=dataclasses.replace(config.augment, mirror=()),
      lateral_axes=lateral_axes(table, model.ndim), alpha_K=alphas(table, config.loss.alpha),
      ema_decay=0.0, seed=0)
  driver = parallel.make_driver("jit", step, config.data.batch_size)
  state = driver.place_state(TrainState.create({"params": nets.parameters(model)},
                                               optimizer, ema=False))
  batches = sampling.batches(setup.training, table, plan, config.data, seed=0)
  kept = jax.tree.map(jnp.copy, driver.place_batch(next(batches)))
  length = driver.place_steps(config.train.steps)

  def steps(count: int, feed: Callable) -> float:
    nonlocal state
    begin = time.perf_counter()
    for _ in range(count):
      state, metrics = driver.step(state, feed(), length)
    jax.block_until_ready(metrics)
    return count / (time.perf_counter() - begin)

  feeds = (lambda: driver.place_batch(next(batches)), lambda: kept)
  rates = ([], [])
  try:
    for _ in range(ROUNDS):
      for feed, rates_of_feed in zip(feeds, rates, strict=True):
        steps(READ_AHEAD, feed)
        rates_of_feed.append(steps(STEPS, feed))
  finally:
    batches.close()
  fed, cached = map(statistics.median, rates)
  return best_row(name, fed, {"one cached batch": cached}, unit="1/s", faster_is_less=False,
                  rounds=ROUNDS, batch=config.data.batch_size)
