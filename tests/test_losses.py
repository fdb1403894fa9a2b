"""The objective against its closed forms, and who does not count."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from condseg_jax import losses
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Loss
from condseg_jax.errors import InputError
from condseg_jax.losses import deep_loss
from condseg_jax.losses import dice_bce
from condseg_jax.losses import image_terms
from condseg_jax.losses import make_objective
from condseg_jax.losses import reduce_mask
from condseg_jax.losses import terms
from condseg_jax.losses import total

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


def test_a_disjoint_prediction_costs_one():
  mask = mask_with(6)
  dice, _ = terms(*batch(np.where(mask == 1, 1e-7, 1 - 1e-7).reshape(SHAPE), mask))
  np.testing.assert_allclose(dice, 1, atol=1e-5)


@pytest.mark.parametrize("p, expected", [(1e-7, 0), (1 - 1e-7, 1)])
def test_an_empty_target_is_right_or_wrong_to_the_same_measure(p, expected):
  dice, _ = terms(*batch(p, mask_with(0, 4)))
  np.testing.assert_allclose(dice, expected, atol=1e-5)


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


LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(
    lambda logits, mask: sum(t.sum() for t in terms(logits, mask))))


@settings(deadline=None, max_examples=25)
@given(mask=hnp.arrays(np.uint8, (2, *SHAPE, 1), elements=st.sampled_from([0, 1, UNLABELLED])),
       hidden=st.sampled_from([np.inf, -np.inf, np.nan, 1e30, -88.0]), seed=st.integers(0, 99))
def test_unlabelled_voxels_of_any_mask_say_nothing(mask, hidden, seed):
  """Neither their logits nor what is hidden there changes a value or a gradient."""
  logits = np.random.default_rng(seed).normal(0, 3, mask.shape).astype(np.float32)
  unlabelled = mask == UNLABELLED
  value, gradient = LOSS_AND_GRADIENT(logits, mask)
  spoilt = LOSS_AND_GRADIENT(np.where(unlabelled, np.float32(hidden), logits), mask)
  np.testing.assert_array_equal(spoilt[0], value)
  np.testing.assert_array_equal(spoilt[1], gradient)
  gradient = np.asarray(gradient)
  assert np.isfinite(gradient).all() and np.all(gradient[unlabelled] == 0)
  assert np.all(gradient[~unlabelled] != 0)


def test_dice_agrees_with_optax_where_there_is_a_target():
  logits, mask, *_ = random_batch()
  labelled = np.asarray(mask) != UNLABELLED
  for b in range(4):
    for n in range(2):
      here = labelled[b, ..., n]
      assert (mask[b, ..., n] == 1).any()
      oracle = optax.losses.binary_dice_loss(
          logits[b, ..., n][here][None], jnp.asarray(mask[b, ..., n][here] == 1, jnp.float32)[None],
          smooth=0.0, apply_sigmoid=True)
      np.testing.assert_allclose(terms(logits, mask).dice[b, n], oracle, rtol=1e-5)


@pytest.mark.parametrize("z", [20.0, 80.0, 1e4, 1e30])
def test_sure_predictions_keep_their_values_and_gradients(z):
  """Right: log(1 + exp(-z)) with gradient ∓σ(-z), not 0; wrong: z, with gradient ∓1."""
  mask = jnp.array([1, 0, 1, 0], jnp.uint8).reshape(1, 4, 1)
  for sign, size, slope in ((1, np.log1p(np.exp(-z)), 1 / (1 + np.exp(min(z, 700)))), (-1, z, 1)):
    logits = sign * jnp.array([z, -z, z, -z], jnp.float32).reshape(1, 4, 1)
    value, gradient = jax.value_and_grad(lambda x: terms(x, mask).bce.sum())(logits)
    np.testing.assert_allclose(value, size, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(4 * gradient.reshape(-1), slope * np.array([-1, 1, -1, 1]),
                               rtol=1e-5, atol=1e-37)
    dice, gradient = jax.value_and_grad(lambda x: terms(x, mask).dice.sum())(logits)
    np.testing.assert_allclose(dice, (1 - sign) / 2, atol=1e-6)
    assert np.isfinite(gradient).all()


def test_a_term_belongs_to_its_sample_and_its_class():
  logits, mask, *_ = random_batch()
  whole = terms(logits, mask)
  assert whole.dice.shape == whole.bce.shape == (4, 2)
  for b, n in ((0, 1), (3, 0)):
    alone = terms(logits[b:b + 1, ..., n:n + 1], mask[b:b + 1, ..., n:n + 1])
    np.testing.assert_allclose([alone.dice[0, 0], alone.bce[0, 0]],
                               [whole.dice[b, n], whole.bce[b, n]], rtol=1e-6)


def test_images_have_no_depth():
  logits, mask, *_ = random_batch()
  flat = terms(logits.reshape(4, 6, 4, 2), mask.reshape(4, 6, 4, 2))
  np.testing.assert_array_equal(flat.dice, terms(logits, mask).dice)


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
  loss_BN = dice_bce(logits, mask, Loss(bce_weight=0.7))
  return total(loss_BN, ids, beta, ALPHA, global_batch=global_batch)


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


def test_alpha_weighs_the_gradient_of_its_class_alone():
  logits, mask, ids, _ = random_batch()
  beta = jnp.ones_like(ids, jnp.float32)

  def gradient(alpha_K):
    loss_BN = lambda z: dice_bce(z, mask, Loss(bce_weight=0.7))
    return np.asarray(jax.grad(
        lambda z: total(loss_BN(z), ids, beta, alpha_K, global_batch=4))(logits))

  plain, weighted = gradient(jnp.ones(3)), gradient(jnp.array([1.0, 5.0, 0.0]))
  for b, n in np.ndindex(4, 2):
    factor = (1, 5, 0)[int(ids[b, n])]
    np.testing.assert_allclose(weighted[b, ..., n], factor * plain[b, ..., n], rtol=1e-5)


def test_without_cross_entropy_it_is_the_dice_of_the_paper():
  logits, mask, ids, beta = random_batch()
  loss_BN = dice_bce(logits, mask, Loss(bce_weight=0.0))
  loss = total(loss_BN, ids, beta, jnp.ones(3), global_batch=4)
  np.testing.assert_allclose(loss, (terms(logits, mask).dice * beta).sum() / 4, rtol=1e-6)


# --- deep supervision ---------------------------------------------------------------------------
U = UNLABELLED


@pytest.mark.parametrize("block, coarse", [
    ((0, 0, 0, 0), 0), ((1, 1, 1, 1), 1), ((U, U, U, U), U),
    ((1, 0, 0, 1), 1), ((1, 0, 0, 0), 0),  # a tie is positive, a minority is not
    ((U, U, U, 0), 0), ((U, U, U, 1), 1), ((U, 1, 0, 0), 0), ((U, U, 1, 0), 1)])
def test_the_labelled_voxels_of_a_block_vote(block, coarse):
  # A second block of positive voxels, so that the class is not lost.
  mask = jnp.asarray([[*block[:2], 1, 1], [*block[2:], 1, 1]], jnp.uint8)[None, ..., None]
  np.testing.assert_array_equal(reduce_mask(mask, (2, 2)), [[[[coarse], [1]]]])
  np.testing.assert_array_equal(reduce_mask(mask, (1, 1)), mask)


def test_a_class_too_thin_for_the_coarse_grid_is_not_called_absent():
  mask = np.zeros((2, 4, 4, 2), np.uint8)
  mask[0, 1, 1, 0] = 1  # one voxel of sixteen; the other class and the other sample have none
  coarse = reduce_mask(jnp.asarray(mask), (4, 4))
  np.testing.assert_array_equal(coarse[:, 0, 0], [[U, 0], [0, 0]])


@settings(deadline=None, max_examples=25)
@given(mask=hnp.arrays(np.uint8, (2, 4, 4, 4, 1), elements=st.sampled_from([0, 1, U])))
def test_nothing_is_invented_on_the_coarse_grid(mask):
  coarse = np.asarray(reduce_mask(jnp.asarray(mask), (2, 2, 2)))
  blocks = mask.reshape(2, 2, 2, 2, 2, 2, 2, 1)
  for value in (0, 1):  # a value that no voxel of the block has does not appear
    assert not np.any((coarse == value) & ~(blocks == value).any((2, 4, 6)))
  nothing = (blocks == U).all((2, 4, 6))
  lost = (mask == 1).any((1, 2, 3)) & ~(coarse == 1).any((1, 2, 3))
  np.testing.assert_array_equal(coarse == U, nothing | lost[:, None, None, None])


def test_the_weights_of_the_levels_are_halved_and_add_up_to_one():
  rng = np.random.default_rng(0)
  mask = jnp.asarray(rng.choice([0, 1, U], (2, 4, 8, 8, 3)), jnp.uint8)
  logits = [jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
            for shape in ((4, 8, 8), (4, 4, 4), (2, 2, 2))]
  masks = [mask, reduce_mask(mask, (1, 2, 2)), reduce_mask(mask, (2, 4, 4))]
  objective = make_objective(Loss(bce_weight=0.3))
  levels = [terms(*pair) for pair in zip(logits, masks, strict=True)]
  expected = sum(w / 7 * (level.dice + 0.3 * level.bce)
                 for w, level in zip((4, 2, 1), levels, strict=True))
  np.testing.assert_allclose(deep_loss(logits, mask, objective), expected, rtol=1e-6)
  np.testing.assert_array_equal(deep_loss(logits[:1], mask, objective),
                                levels[0].dice + 0.3 * levels[0].bce)


# --- labels of whole images ------------------------------------------------------------------
@pytest.mark.parametrize("positives", [0, 1, 7])
@pytest.mark.parametrize("r", [0.5, 5.0])
def test_the_score_of_an_image_is_a_smooth_maximum_of_its_labelled_logits(positives, r):
  z = np.linspace(-2, 3, VOXELS)
  mask = mask_with(positives, 4)
  found = image_terms(*batch(1 / (1 + np.exp(-z.reshape(SHAPE))), mask), r)
  score = np.log(np.mean(np.exp(r * z[:-4]))) / r
  expected = np.log1p(np.exp(-score if positives else score))
  np.testing.assert_allclose(found.bce, [[expected]], rtol=1e-4)
  assert float(found.dice[0, 0]) == 0.0


def test_sharpness_goes_from_the_mean_to_the_maximum():
  z = np.linspace(-1, 0.5, VOXELS)
  for r, score in ((1e-3, z.mean()), (1e4, z.max())):
    bce = image_terms(*batch(1 / (1 + np.exp(-z.reshape(SHAPE))), mask_with(1)), r).bce
    np.testing.assert_allclose(bce, [[np.log1p(np.exp(-score))]], rtol=1e-3)


def test_of_an_image_s_mask_only_its_presence_counts():
  z = jnp.asarray(np.random.default_rng(0).normal(size=(1, *SHAPE, 1)), jnp.float32)
  masks = [jnp.asarray(mask_with(n), jnp.uint8).reshape(1, *SHAPE, 1) for n in (1, 9, 24)]
  one, *others = (image_terms(z, mask, 5.0).bce for mask in masks)
  for other in others:
    np.testing.assert_array_equal(one, other)


def test_the_gradient_of_an_image_goes_to_its_labelled_voxels_by_their_weight():
  """∂s/∂z_i = exp(r z_i) / Σ exp(r z), and the cross-entropy's derivative -σ(-s)."""
  z = np.linspace(-1, 1, VOXELS)
  logits, mask = batch(1 / (1 + np.exp(-z.reshape(SHAPE))), mask_with(3, 4))
  gradient = jax.grad(lambda x: image_terms(x, mask, 2.0).bce.sum())(logits).reshape(-1)
  weights = np.exp(2 * z[:-4])
  score = np.log(weights.mean()) / 2
  np.testing.assert_allclose(gradient[:-4], -weights / weights.sum() / (1 + np.exp(score)),
                             rtol=1e-4)
  np.testing.assert_array_equal(gradient[-4:], 0)


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4, np.inf, np.nan])
def test_an_image_without_a_label_says_nothing(value):
  mask = jnp.full((1, *SHAPE, 1), UNLABELLED, jnp.uint8)
  logits = jnp.full(mask.shape, value, jnp.float32)
  loss, gradient = jax.value_and_grad(lambda x: sum(map(jnp.sum, image_terms(x, mask, 5.0))))(
      logits)
  assert float(loss) == 0.0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_sure_logits_of_an_image_give_finite_terms(value):
  """Unlabelled ones far from them too, whose exponential would overflow."""
  logits = jnp.full((1, *SHAPE, 1), -value, jnp.float32).at[0, 0].set(value)
  mask = jnp.full(logits.shape, UNLABELLED, jnp.uint8).at[0, 0].set(1)
  loss, gradient = jax.value_and_grad(lambda x: image_terms(x, mask, 5.0).bce.sum())(logits)
  np.testing.assert_allclose(loss, max(-value, 0), rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_labels_of_images_hold_at_every_level():
  """No Dice anywhere: that would be of the voxels."""
  objective = make_objective(Loss(objective="image_level", bce_weight=0.5, lse_sharpness=4.0))
  mask = jnp.ones((2, 4, 4, 1), jnp.uint8)
  logits = [jnp.ones((2, 4, 4, 1)), 2 * jnp.ones((2, 2, 2, 1))]
  # The smooth maximum of equal logits is that logit: softplus(-z) for a present class.
  expected = 0.5 * (2 / 3 * np.log1p(np.exp(-1)) + 1 / 3 * np.log1p(np.exp(-2)))
  np.testing.assert_allclose(deep_loss(logits, mask, objective), expected, rtol=1e-6)


# --- calibration error ------------------------------------------------------------------------
def test_the_calibration_error_by_hand():
  """Two bins per class: p = 0.9 with 3 of 4 positive, and p = 0.1 with none."""
  p = np.tile(np.repeat([0.9, 0.1], 400)[None, :, None], (2, 1, 2)).astype(np.float32)
  mask = np.zeros(p.shape, np.uint8)
  mask[:, :300] = 1
  mask[1, 350:400, 1] = UNLABELLED  # 300 of 350 then
  found = losses.calibration_error(jnp.log(p / (1 - p)), jnp.asarray(mask))
  plain = (0.15 + 0.1) / 2
  np.testing.assert_allclose(
      found, [[plain, plain], [plain, (0.9 - 300 / 350 + 0.1) / 2]], rtol=1e-4)


def test_a_calibrated_network_has_no_calibration_error_and_a_sure_one_has():
  rng = np.random.default_rng(0)
  p = rng.uniform(size=(1, 40_000, 1)).astype(np.float32)
  mask = jnp.asarray(rng.uniform(size=p.shape) < p, jnp.uint8)
  z = jnp.log(p / (1 - p))
  error = jax.jit(lambda factor: losses.calibration_error(factor * z, mask).sum())
  assert error(1.0) < 0.015 < 0.1 < error(4.0)
  assert jax.grad(error)(4.0) > 0, "it pulls towards less"


def test_the_calibration_error_sees_labelled_voxels_of_large_enough_masks():
  rng = np.random.default_rng(1)
  mask = np.zeros((1, 500, 1), np.uint8)
  mask[:, :losses.FEWEST] = 1
  mask[:, 300:] = UNLABELLED
  z = rng.normal(size=mask.shape).astype(np.float32)
  z[:, 400:] = np.inf
  value, gradient = jax.value_and_grad(
      lambda x, m: losses.calibration_error(x, m).sum())(jnp.asarray(z), jnp.asarray(mask))
  assert value > 0 and np.all(gradient[:, 300:] == 0) and np.any(gradient[:, :300] != 0)
  mask[:, 0] = 0
  value, gradient = jax.value_and_grad(
      lambda x, m: losses.calibration_error(x, m).sum())(jnp.asarray(z), jnp.asarray(mask))
  assert value == 0 and not gradient.any()


def test_the_objective_adds_it():
  logits, mask = batch(np.full(SHAPE, 0.3), mask_with(5))
  objective = make_objective(Loss(objective="dice_bce_ace", bce_weight=0.5))
  np.testing.assert_allclose(
      objective(logits, mask), make_objective(Loss(bce_weight=0.5))(logits, mask)
      + losses.calibration_error(logits, mask), rtol=1e-6)


# --- objectives by name -----------------------------------------------------------------------
def test_an_objective_of_ones_own(monkeypatch):
  """A function and a line of the config; it gets the settings with its own numbers."""
  def scaled(logits_BDHWN, mask_BDHWN, settings):
    return settings.options["gamma"] * dice_bce(logits_BDHWN, mask_BDHWN, settings)

  monkeypatch.setitem(losses.OBJECTIVES, "scaled", scaled)
  logits, mask = batch(np.full(SHAPE, 0.3), mask_with(5))
  plain = make_objective(Loss())(logits, mask)
  own = make_objective(Loss(objective="scaled", options={"gamma": 3.0}))(logits, mask)
  np.testing.assert_allclose(own, 3 * plain, rtol=1e-6)


def test_an_objective_that_is_not_registered():
  with pytest.raises(InputError, match="loss.objective: 'points' is not registered.*dice_bce"):
    make_objective(Loss(objective="points"))


# --- classes that compete -----------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), classes=st.integers(1, 5))
def test_against_others_is_the_logit_of_the_softmax(seed, classes):
  z = np.random.default_rng(seed).normal(0, 3, (2, 3, 4, classes)).astype(np.float32)
  odds = np.exp(z.astype(np.float64))
  share = odds / (1 + odds.sum(-1, keepdims=True))
  np.testing.assert_allclose(losses.against_others(z), np.log(share / (1 - share)), rtol=1e-4,
                             atol=1e-5)
  # What a class gets that is asked for alone is never less.
  assert (1 / (1 + 1 / odds) >= share - 1e-12).all()


def test_against_others_far_from_zero():
  z = jnp.array([[1e4, -1e4, 3.0], [-1e4, -1e4, -1e4], [80.0, 80.0, -80.0]])
  out, gradient = jax.value_and_grad(lambda x: losses.against_others(x).sum())(z)
  assert np.isfinite(out) and np.isfinite(gradient).all()
  np.testing.assert_allclose(losses.against_others(z)[2, :2], 0.0, atol=1e-5)


def test_one_class_has_no_rivals():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, 3, 4, 1)).astype(np.float32)
  mask = rng.choice([0, 1, 255], z.shape).astype(np.uint8)
  np.testing.assert_allclose(losses.marginal(z, mask, Loss()), losses.dice_bce(z, mask, Loss()),
                             rtol=1e-6)


def test_the_marginal_loss_moves_the_rivals_of_the_annotated_class_alone():
  """Down where it is; up, if they are likely, where it is known not to be; else not at all."""
  z = jnp.zeros((1, 3, 3)).at[0, :, 1].set(2.0)  # the second class is likely everywhere
  mask = np.full((1, 3, 3), UNLABELLED, np.uint8)
  mask[0, :, 0] = [POSITIVE, NEGATIVE, UNLABELLED]
  gradient = jax.grad(lambda x: losses.marginal(x, mask, Loss())[0, 0])(z)[0]
  assert (gradient[0, 1:] > 0).all() and gradient[0, 0] < 0
  assert (gradient[1, 1:] < 0).all() and gradient[1, 0] > 0
  assert gradient[0, 1] > gradient[0, 2] and gradient[1, 1] < gradient[1, 2]  # the likely one more
  assert (gradient[2] == 0).all()
  assert (losses.marginal(z, mask, Loss())[0, 1:] == 0).all()
