"""How many steps fit into the minutes of a run."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp

from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.train import parallel
from condseg_jax.train.state import TrainState

EVALUATIONS = 4  # in a run, if they take no more than `EVALUATION_SHARE` of it
EVALUATION_SHARE = 0.1
TIMED_STEPS, TIMED_SECONDS = 12, 15.0  # whichever comes first
SPARE = 0.02  # of the time, for checkpoints and slower steps


def step_seconds(driver: parallel.Driver, state: TrainState, batches: Iterator) -> float:
  """Returns the seconds of a step, after the first one, which compiles.

  The state and what the steps compute are not kept, so that a run does not depend on the timing.
  """
  state = jax.tree.map(jnp.copy, state)  # a step may reuse the memory of its state
  started, count = 0.0, 0
  for number, batch in enumerate(itertools.islice(batches, TIMED_STEPS + 1)):
    state, _ = driver.step(state, driver.place_batch(batch), driver.place_steps(1))
    jax.block_until_ready(state)
    if number == 0:
      started = time.monotonic()
    elif time.monotonic() - started > TIMED_SECONDS:
      count = number
      break
    count = number
  return (time.monotonic() - started) / max(count, 1)


def fit_steps(config: Config, seconds_left: float, step: float,
              evaluation: Callable[[], float]) -> Config:
  """Returns a config with the number of steps and evaluations that fit into the time left.

  Args:
    config: with `train.minutes`.
    seconds_left: of the run.
    step: seconds of a step.
    evaluation: measures the seconds of one evaluation on held-out cases.

  Raises:
    InputError: the time does not suffice for more than the warm-up of the learning rate.
  """
  once = evaluation()
  times = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * seconds_left / max(once, 1e-9))))
  steps = int(((1 - SPARE) * seconds_left - times * once) / step)
  # All processes take the numbers of the first, whose clock started the run.
  steps, times = parallel.gather([(steps, times)])[0]
  least = config.optimizer.warmup + 1
  if steps < least:
    minutes = config.train.minutes + ((least - steps) * step / (1 - SPARE)) / 60
    raise InputError("train.minutes", f"{config.train.minutes:g} leaves time for {max(steps, 0)} "
                     f"step(s) of {step:.2g} s", f"give {minutes:.1f} or more, or choose a smaller "
                     "subvolume, batch or network", usage=True)
  train = dataclasses.replace(config.train, steps=steps, eval_every=-(-steps // times))
  return dataclasses.replace(config, train=train)


def describe(config: Config, step: float, memory_gb: float) -> str:
  """Formats what to expect of a run for the log."""
  return f"{config.train.steps:,} steps, {1 / step:.3g} steps/s, {memory_gb:.2g} GB"
