"""Schedules and update rules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Optimizer
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import make_schedule

STEPS, WARMUP, RATE = 100, 10, 0.5


@pytest.mark.parametrize("kind, decay", [
    ("constant", lambda t: 1.0), ("cosine", lambda t: (1 + np.cos(np.pi * t)) / 2),
    ("polynomial", lambda t: (1 - t) ** 0.9)])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_a_schedule_is_its_formula(kind, decay, warmup):
  schedule = make_schedule(Optimizer(learning_rate=RATE, schedule=kind, warmup=warmup), STEPS)
  for step in range(STEPS):
    t = (step - warmup) / (STEPS - warmup)
    expected = RATE * (step / warmup if step < warmup else decay(t))
    np.testing.assert_allclose(float(schedule(step)), expected, rtol=1e-5, atol=1e-7)


def test_a_run_shorter_than_its_warmup_never_decays():
  schedule = make_schedule(Optimizer(learning_rate=RATE, warmup=20), 5)
  np.testing.assert_allclose([float(schedule(s)) for s in range(5)],
                             [RATE * s / 20 for s in range(5)], rtol=1e-6)


def first_update(gradient, param=2.0, **settings):
  optimizer = make_optimizer(Optimizer(schedule="constant", warmup=0, learning_rate=0.1,
                                       **settings))
  params = jnp.asarray([param, param], jnp.float32)
  # optax mixes Python numbers with its int32 counters, as in the step.
  with jax.numpy_dtype_promotion("standard"):
    update, _ = optimizer.update(jnp.asarray(gradient, jnp.float32), optimizer.init(params),
                                 params, steps=10)
  return np.asarray(update)


def test_first_updates():
  """Adam's is the sign, Nesterov's (1 + momentum) g, decoupled decay adds -rate · decay · param."""
  np.testing.assert_allclose(first_update([3.0, -0.5], clip_norm=0.0), [-0.1, 0.1], rtol=1e-4)
  np.testing.assert_allclose(first_update([3.0, -0.5], name="adamw", weight_decay=0.25,
                                          clip_norm=0.0), [-0.15, 0.05], rtol=1e-4)
  np.testing.assert_allclose(first_update([3.0, -0.5], name="sgd", momentum=0.9, clip_norm=0.0),
                             [-0.57, 0.095], rtol=1e-5)
  np.testing.assert_allclose(first_update([3.0, 4.0], name="sgd", momentum=0.0, clip_norm=1.0),
                             [-0.06, -0.08], rtol=1e-5)
