"""The objective against its closed forms, and who does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from condseg_jax.classes import UNLABELLED
from condseg_jax.losses import objective
from condseg_jax.losses import terms

SHAPE = (2, 3, 4)  # D H W
VOXELS = 24


def logit(p):
  return np.log(p / (1 - p))


def batch(p, mask):
  """One sample, one class."""
  logits = jnp.broadcast_to(jnp.asarray(logit(p), jnp.float32), SHAPE)[None, ..., None]
  return logits, jnp.asarray(mask, jnp.uint8).reshape(1, *SHAPE, 1)


def mask_with(positives, unlabelled=0):
  flat = np.zeros(VOXELS, np.uint8)
  flat[:positives] = 1
  flat[VOXELS - unlabelled:] = UNLABELLED
  return flat


@pytest.mark.parametrize("positives, unlabelled", [(1, 0), (7, 0), (7, 10), (24, 0), (5, 19)])
def test_dice_of_a_uniform_prediction(positives, unlabelled):
  p, labelled = 0.3, VOXELS - unlabelled
  dice, _ = terms(*batch(p, mask_with(positives, unlabelled)))
  expected = 1 - 2 * p * positives / (p * labelled + positives)
  np.testing.assert_allclose(dice, [[expected]], rtol=1e-5)


def test_a_perfect_prediction_costs_nothing():
  mask = mask_with(6)
  dice, bce = terms(*batch(np.where(mask == 1, 1 - 1e-7, 1e-7).reshape(SHAPE), mask))
  np.testing.assert_allclose(dice, 0, atol=1e-5)
  np.testing.assert_allclose(bce, 0, atol=1e-5)


def test_an_empty_target_is_scored_on_its_complement():
  p = 0.3
  dice, _ = terms(*batch(p, mask_with(0, 4)))
  n = VOXELS - 4
  np.testing.assert_allclose(dice, [[1 - 2 * (1 - p) * n / ((1 - p) * n + n)]], rtol=1e-5)


def test_an_empty_target_pushes_every_labelled_voxel_down():
  logits, mask = batch(0.3, mask_with(0, 4))
  gradient = jax.grad(lambda z: terms(z, mask).dice.sum())(logits).reshape(-1)
  n = VOXELS - 4
  # d/dz of 1 - 2 Q / (Q + n), Q = Σ (1 - p): 2 n / (Q + n)² · p (1 - p).
  expected = 2 * n / (0.7 * n + n) ** 2 * 0.3 * 0.7
  np.testing.assert_allclose(gradient[:n], expected, rtol=1e-4)
  np.testing.assert_array_equal(gradient[n:], 0)


@pytest.mark.parametrize("term", ["dice", "bce"])
def test_all_unlabelled_is_exactly_nothing(term):
  logits, mask = batch(0.3, mask_with(0, VOXELS))
  value, gradient = jax.value_and_grad(lambda z: getattr(terms(z, mask), term).sum())(logits)
  assert float(value) == 0 and np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("hidden", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("positives", [0, 5])
def test_unlabelled_voxels_say_nothing(hidden, positives):
  logits, mask = batch(0.3, mask_with(positives, 6))
  spoilt = jnp.where(mask == UNLABELLED, hidden, logits)

  def loss(z):
    return sum(t.sum() for t in terms(z, mask))

  plain, spoilt = (jax.value_and_grad(loss)(z) for z in (logits, spoilt))
  np.testing.assert_array_equal(plain[0], spoilt[0])
  np.testing.assert_array_equal(plain[1], spoilt[1])


def test_cross_entropy_agrees_with_optax():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 30, (3, *SHAPE, 2)).astype(np.float32)
  mask = rng.choice(np.array([0, 1, UNLABELLED], np.uint8), logits.shape)
  oracle = np.asarray(optax.sigmoid_binary_cross_entropy(
      jnp.asarray(logits), jnp.asarray(mask == 1, jnp.float32)))
  labelled = mask != UNLABELLED
  expected = (oracle * labelled).sum((1, 2, 3)) / labelled.sum((1, 2, 3))
  np.testing.assert_allclose(terms(jnp.asarray(logits), jnp.asarray(mask)).bce, expected,
                             rtol=1e-5)


def random_batch(seed=0, size=4):
  rng = np.random.default_rng(seed)
  logits = jnp.asarray(rng.normal(size=(size, *SHAPE, 2)), jnp.float32)
  mask = jnp.asarray(rng.choice(np.array([0, 1, UNLABELLED], np.uint8), logits.shape))
  ids = jnp.asarray([[0, 1], [1, 2], [2, 0], [0, 2]][:size], jnp.int32)
  beta = jnp.asarray([[1, 1], [1, 0], [0, 1], [1, 1]][:size], jnp.float32)
  return logits, mask, ids, beta


ALPHA = jnp.array([1.0, 2.0, 0.5])


def loss_of(logits, mask, ids, beta, global_batch):
  return objective(terms(logits, mask), ids, beta, ALPHA, bce_weight=0.7,
                   global_batch=global_batch)


def test_the_objective_is_its_formula():
  logits, mask, ids, beta = random_batch()
  dice, bce = (np.asarray(t) for t in terms(logits, mask))
  expected = sum(float(ALPHA[ids[b, n]] * beta[b, n]) * (dice[b, n] + 0.7 * bce[b, n])
                 for b in range(4) for n in range(2)) / 4
  np.testing.assert_allclose(loss_of(logits, mask, ids, beta, 4), expected, rtol=1e-5)


def test_the_parts_of_two_devices_add_up():
  """Although the halves hold different numbers of annotated decodes."""
  whole = random_batch()
  halves = [loss_of(*(x[part] for x in whole), 4) for part in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(sum(halves), loss_of(*whole, 4), rtol=1e-6)


def test_no_beta_no_gradient():
  logits, mask, ids, beta = random_batch()
  gradient = np.asarray(jax.grad(loss_of)(logits, mask, ids, beta, 4))
  silent = np.asarray(beta) == 0
  assert silent.any()
  for b, n in np.argwhere(silent):
    assert np.all(gradient[b, ..., n] == 0)
  for b, n in np.argwhere(~silent):
    assert np.any(gradient[b, ..., n] != 0)
