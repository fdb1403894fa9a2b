"""Learning what belongs to one class alone: everything else stays as it is, bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.config import Augment
from condseg_jax.config import Conditioning
from condseg_jax.config import Loss
from condseg_jax.config import Model
from condseg_jax.config import Optimizer
from condseg_jax.data.batch import Batch
from condseg_jax.losses import make_objective
from condseg_jax.models.build import build_model
from condseg_jax.models.class_axes import own_entries
from condseg_jax.models.network import variable_shapes
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step

CLASSES, NEW, SHAPE = 3, 2, (8, 8)
MODEL = Model(strides=((2, 2),), layers_per_level=(1, 1), channels=4, growth=4, dtype="float32")
CASES = {"vector": dict(vector="embedding"),
         "rows, with moments of the batch": dict(vector="one_hot", mechanism="batch_norm"),
         "decoders": dict(position="per_class_decoders"),
         "rows of a head": dict(position="output_head", mechanism="dynamic", vector="one_hot")}


def made(condition):
  """A network, its state with an average, and which entries belong to the new class."""
  conditioning = Conditioning(**condition)
  model = build_model(MODEL, conditioning, (-0.5, 0.1, 0.7))
  shapes = variable_shapes(model, 1)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: rng.normal(0.5, 0.3, x.shape).astype(np.float32), shapes)
  own = own_entries(MODEL, conditioning, CLASSES, 1, [NEW])
  settings = Optimizer(name="adamw", weight_decay=0.5, warmup=0, learning_rate=0.1)
  optimizer = make_optimizer(settings)
  step = make_train_step(model, optimizer, objective=make_objective(Loss()),
                         augmentation=Augment(probability=0.0), spacing=(1.0, 1.0),
                         lateral_axes=np.zeros((CLASSES, 2), bool), alpha_K=np.ones(CLASSES),
                         ema_decay=0.9, seed=0, learned=own)
  return model, TrainState.create(variables, optimizer, ema=True), own, step


def batch(class_id):
  image = np.random.default_rng(1).normal(size=(2, *SHAPE, 1)).astype(np.float32)
  return Batch(image, np.full((2, 1), class_id, np.int32), (image > 0.5).astype(np.uint8),
               np.ones((2, 1), np.float32), np.arange(2, dtype=np.int32), np.zeros(2, np.int32))


@pytest.mark.parametrize("name", CASES)
def test_all_else_stays_as_it_is(name):
  """Neither the gradient moves it, nor weight decay, nor the rounding of an average."""
  model, before, own, step = made(CASES[name])
  state = before
  step = jax.jit(step)
  for _ in range(2):
    state, metrics = step(state, batch(NEW), jnp.int32(5))
  assert metrics["gradient_norm"] > 0
  for found in (state.params, state.ema):
    for one, other, mine in zip(*map(jax.tree.leaves, (before.params, found, own)), strict=True):
      changed = np.asarray(one).view(np.uint32) != np.asarray(other).view(np.uint32)
      assert not (changed & ~mine).any()
      assert changed.any() == mine.any()
  jax.tree.map(np.testing.assert_array_equal, state.statistics, before.statistics)
  decode = jax.jit(model.apply)
  for k in range(CLASSES):
    one, other = (np.asarray(decode(s.averaged, batch(k).image, jnp.full(2, k)))
                  for s in (before, state))
    assert np.array_equal(one, other) == (k != NEW)


def test_where_nothing_is_a_class_own():
  """All classes share what a network makes of a hash."""
  own = own_entries(MODEL, Conditioning(), CLASSES, 1, [0])
  assert not any(leaf.any() for leaf in jax.tree.leaves(own))
