"""Steps and evaluations that fit into the minutes of a run."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.train import budget
from condseg_jax.train.parallel import Driver

RUN = Config().override({"train.minutes": 2.0, "optimizer.warmup": 20})


@pytest.mark.parametrize("left, step, evaluation, steps, times", [
    (100.0, 0.1, 0.0, 980, 4),  # two seconds are spare
    (100.0, 0.1, 2.0, 900, 4),  # four evaluations take eight
    (100.0, 0.1, 4.0, 900, 2),  # more than two would take more than a tenth of the time
    (100.0, 0.1, 30.0, 680, 1)])  # the last one is always made
def test_steps_and_evaluations_fill_the_time(left, step, evaluation, steps, times):
  train = budget.fit_steps(RUN, left, step, lambda: evaluation).train
  assert abs(train.steps - steps) <= 1
  assert -(-train.steps // train.eval_every) == times
  assert train.minutes == 2.0


def test_no_time_for_a_useful_step_is_refused_with_the_time_that_is():
  with pytest.raises(InputError, match=r"train.minutes: 2 leaves time for 9 step\(s\) of 0.1 s "
                     r"\(give 2.0 or more") as caught:
    budget.fit_steps(RUN, 1.0, 0.1, lambda: 0.0)
  assert caught.value.usage
  with pytest.raises(InputError, match=r"leaves time for 0 step\(s\)"):
    budget.fit_steps(RUN, -60.0, 0.1, lambda: 0.0)


def test_a_step_is_timed_without_the_first_and_changes_nothing():
  calls = []

  def step(state, batch, steps):
    time.sleep(0.3 if not calls else 0.02)  # as if it were compiled at first
    calls.append((int(batch), int(steps)))
    return state + 1, {}

  state = jnp.zeros(())
  driver = Driver(lambda s: s, lambda b: b, lambda s: s, step)
  seconds = budget.step_seconds(driver, state, iter(np.arange(99)))
  assert 0.02 <= seconds < 0.2
  assert calls == [(n, 1) for n in range(budget.TIMED_STEPS + 1)] and float(state) == 0


def test_what_to_expect_is_one_line():
  config = RUN.override({"train.steps": 1850})
  assert budget.describe(config, 1 / 3.1, 0.91) == "1,850 steps, 3.1 steps/s, 0.91 GB"
