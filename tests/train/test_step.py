"""The step: jit = pmap, samples that do not count, the guard, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Augment
from condseg_jax.config import Loss
from condseg_jax.config import Optimizer
from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError
from condseg_jax.losses import make_objective
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.train.parallel import make_driver
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step

SHAPE = (4, 8, 8)
OFF = dict(rotate=0.0, zoom=0.0, shift=0.0, scale=0.0, offset=0.0, gamma=0.0, noise=0.0)
NOTHING = Augment(**OFF)
AUGMENTATION = Augment(**OFF | dict(probability=1.0, rotate=20.0, zoom=0.2, shift=0.1, scale=0.2,
                                    gamma=0.2, noise=0.1), mirror=("W",))


@pytest.fixture(scope="module")
def model():
  return DenseUNet(codes=(-0.5, 0.7), strides=((2, 2, 2),), layers_per_level=(1, 1), channels=8,
                   growth=8)


@pytest.fixture(scope="module")
def params(model):
  image = jnp.zeros((1, *SHAPE, 1))
  return jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))["params"]


def make_batch(seed=0, size=4):
  rng = np.random.default_rng(seed)
  image = rng.normal(size=(size, *SHAPE, 1)).astype(np.float32)
  mask = (image > 0.5).astype(np.uint8)
  mask[:, :1] = UNLABELLED
  return Batch(image=image, class_id=(np.arange(size, dtype=np.int32) % 2)[:, None], mask=mask,
               beta=np.ones((size, 1), np.float32), index=np.arange(size, dtype=np.int32),
               dataset=np.zeros(size, np.int32))


def make_step(model, optimizer, augmentation=NOTHING, ema_decay=0.0, alpha_K=(1.0, 2.0),
              grad_accum_steps=1, **loss):
  return make_train_step(model, optimizer, objective=make_objective(Loss(**loss)),
                         augmentation=augmentation, spacing=(2.0, 1.0, 1.0),
                         lateral_axes=np.zeros((2, 3), bool), alpha_K=alpha_K, ema_decay=ema_decay,
                         seed=3, grad_accum_steps=grad_accum_steps)


def new_state(params, optimizer, ema=False):
  # The jit driver donates its state, so each takes a copy.
  return TrainState.create({"params": jax.tree.map(jnp.copy, params)}, optimizer, ema=ema)


def largest_difference(a, b):
  return max(float(np.abs(np.asarray(x) - np.asarray(y)).max())
             for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.slow
def test_jit_equals_pmap_on_two_devices(model, params):
  assert jax.device_count() == 2
  optimizer = optax.sgd(0.1)  # Adam would magnify rounding where a gradient is nearly zero
  results = {}
  for name in ("jit", "pmap"):
    driver = make_driver(name, make_step(model, optimizer, AUGMENTATION), 4)
    state = driver.place_state(new_state(params, optimizer))
    for seed in range(2):
      batch = driver.place_batch(make_batch(seed))
      steps = driver.place_steps(2)
      with jax.transfer_guard("disallow"):  # as in the loop: what moves is moved before the step
        state, metrics = driver.step(state, batch, steps)
    results[name] = jax.device_get((state.params, metrics))
  assert largest_difference(results["jit"][0], params) > 1e-3  # something was learned
  assert largest_difference(results["jit"], results["pmap"]) < 1e-5


@pytest.mark.slow
def test_order_of_the_samples_does_not_matter(model, params):
  """Randomness belongs to the sample, not to its place: the same global batch, permuted."""
  optimizer = optax.sgd(0.1)
  step = jax.jit(make_step(model, optimizer, AUGMENTATION))
  batch = make_batch()
  permuted = jax.tree.map(lambda x: x[np.array([2, 0, 3, 1])], batch)
  a, _ = step(new_state(params, optimizer), batch)
  b, _ = step(new_state(params, optimizer), permuted)
  assert largest_difference(a.params, b.params) < 1e-5


def test_unannotated_class_gives_exactly_zero_gradient(model, params):
  optimizer = optax.sgd(1.0)
  step = jax.jit(make_step(model, optimizer))
  batch = make_batch()
  without = batch._replace(beta=np.zeros_like(batch.beta))
  state, metrics = step(new_state(params, optimizer), without)
  assert largest_difference(state.params, params) == 0.0
  assert float(metrics["loss"]) == 0.0
  assert np.all(np.asarray(metrics["count_K"]) == 0)
  assert np.all(np.asarray(metrics["dice_K"]) == 0)


def test_unannotated_sample_is_as_if_it_were_empty(model, params):
  """β = 0 for one sample: its image and mask do not matter, the divisor is still the batch."""
  optimizer = optax.sgd(1.0)
  step = jax.jit(make_step(model, optimizer))
  batch = make_batch()
  beta = batch.beta.copy()
  beta[1] = 0
  image, mask = batch.image.copy(), batch.mask.copy()
  image[1], mask[1] = 5.0, 1
  a, _ = step(new_state(params, optimizer), batch._replace(beta=beta))
  b, _ = step(new_state(params, optimizer), batch._replace(beta=beta, image=image, mask=mask))
  assert largest_difference(a.params, b.params) == 0.0


@pytest.mark.slow
def test_non_finite_step_is_skipped_and_counted(model, params):
  optimizer = optax.adam(1e-2)
  step = jax.jit(make_step(model, optimizer, ema_decay=0.5))
  bad = make_batch()
  bad.image[0, 0, 0, 0] = np.nan
  state, metrics = step(new_state(params, optimizer, ema=True), bad)
  assert int(state.skipped) == 1 and int(state.step) == 1
  assert largest_difference(state.params, params) == 0.0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
  state, _ = step(state, make_batch())
  assert int(state.skipped) == 1 and int(state.step) == 2
  assert largest_difference(state.params, params) > 0.0


def test_a_finite_loss_with_an_infinite_gradient_is_skipped_too(model, params):
  step = jax.jit(make_step(model, optax.sgd(0.1), alpha_K=(1e25, 1e25)))
  state, metrics = step(new_state(params, optax.sgd(0.1)), make_batch())
  assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"])
  assert int(state.skipped) == 1 and largest_difference(state.params, params) == 0.0


def test_averaged_parameters(model, params):
  optimizer = optax.sgd(0.1)
  step = jax.jit(make_step(model, optimizer, ema_decay=0.15))
  state, averages = new_state(params, optimizer, ema=True), params
  for decay in (1 / 10, 0.15):  # (1 + t) / (10 + t), and from 2/11 on what was asked for
    state, _ = step(state, make_batch())
    averages = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, averages,
                            state.params)
    assert largest_difference(state.ema, averages) < 1e-6


@pytest.mark.slow
def test_gradient_clipping_bounds_the_update(model, params):
  from condseg_jax.train.state import make_optimizer
  settings = Optimizer(name="sgd", learning_rate=1.0, schedule="constant", warmup=0, momentum=0.0,
                       clip_norm=1e-3)
  optimizer = make_optimizer(settings)
  state, metrics = jax.jit(make_step(model, optimizer))(new_state(params, optimizer), make_batch(),
                                                        jnp.int32(10))
  change = jax.tree.map(lambda a, b: a - b, state.params, params)
  assert float(metrics["gradient_norm"]) > 1e-3
  np.testing.assert_allclose(float(optax.tree.norm(change)), 1e-3, rtol=1e-3)


def test_the_step_holds_no_array_of_the_device(model, params):
  # The compiler fetches such a constant from an accelerator, where the loop forbids transfers; on
  # CPU the fetch costs nothing, so that only this shows it.
  optimizer = optax.adam(0.1)
  step = make_step(model, optimizer, AUGMENTATION)
  constants = jax.make_jaxpr(step)(new_state(params, optimizer), make_batch()).consts
  assert not [c for c in constants if isinstance(c, jax.Array)]


# --- parts of a batch, several classes --------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_a_batch_in_parts_is_the_same_step_in_less_memory(name, model, params):
  optimizer = optax.sgd(0.1)
  results, memory = {}, {}
  for parts in (1, 2):
    step = make_step(model, optimizer, AUGMENTATION, grad_accum_steps=parts)
    driver = make_driver(name, step, 4, parts)
    state = driver.place_state(new_state(params, optimizer))
    batch = driver.place_batch(make_batch())
    compiled = driver.step.lower(state, batch, driver.place_steps(2)).compile()
    memory[parts] = compiled.memory_analysis().temp_size_in_bytes
    # No sample leaves its device to make up the parts.
    assert "all-to-all" not in compiled.as_text() and "all-gather" not in compiled.as_text()
    with jax.transfer_guard("disallow"):
      state, metrics = driver.step(state, batch, driver.place_steps(2))
    results[parts] = jax.device_get((state.params, metrics))
  assert largest_difference(results[1][0], params) > 1e-3
  assert largest_difference(results[1], results[2]) < 1e-5
  assert memory[2] < memory[1]


@pytest.mark.parametrize("parts", [0, -1, 3, 4])
def test_parts_that_the_batch_cannot_make(parts):
  with pytest.raises(InputError, match="train.grad_accum_steps"):
    make_driver("jit", None, 4, parts)  # two samples on each of the two devices


@pytest.mark.slow
def test_several_classes_of_an_image_are_the_sum_of_single_class_steps(model, params):
  """The loss and, with plain descent, the change of the parameters."""
  optimizer = optax.sgd(1.0)
  step = jax.jit(make_step(model, optimizer))
  both = make_batch()
  masks = np.concatenate([both.mask, np.where(both.mask == 1, 0, both.mask)], -1)
  masks[1, 2, :4, :, 1] = 1
  both = both._replace(class_id=np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.int32), mask=masks,
                       beta=np.array([[1, 1], [1, 1], [1, 0], [1, 1]], np.float32))

  def change(batch):
    state, metrics = step(new_state(params, optimizer), batch)
    return jax.tree.map(lambda a, b: a - b, state.params, params), metrics

  found, metrics = change(both)
  parts = [change(both._replace(class_id=both.class_id[:, n:n + 1], mask=masks[..., n:n + 1],
                                beta=both.beta[:, n:n + 1])) for n in range(2)]
  expected = jax.tree.map(jnp.add, parts[0][0], parts[1][0])
  assert float(optax.tree.norm(parts[1][0])) > 1e-3
  assert largest_difference(found, expected) < 1e-5
  for key in ("loss", "dice_K", "count_K"):
    np.testing.assert_allclose(metrics[key], parts[0][1][key] + parts[1][1][key], rtol=1e-5)


@pytest.mark.slow
def test_batch_moments_are_those_of_all_devices():
  """jit = pmap with batch normalisation, where samples meet: state, moments and gradient."""
  model = DenseUNet(codes=(-0.5, 0.7), strides=((2, 2, 2),), layers_per_level=(1, 1), channels=4,
                    growth=4, mechanism="batch_norm", vector="embedding", embedding_size=3)
  image = jnp.zeros((1, *SHAPE, 1))
  variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))
  optimizer, results = optax.sgd(0.1), {}
  for name in ("jit", "pmap"):
    driver = make_driver(name, make_step(model, optimizer, AUGMENTATION), 4)
    state = driver.place_state(TrainState.create(jax.tree.map(jnp.copy, variables), optimizer,
                                                 ema=False))
    for seed in range(2):
      batch = make_batch(seed)
      # Two decodes per image, and one class more often than the other on the first device.
      ids = np.array([[0, 1], [0, 0], [0, 1], [1, 0]], np.int32)
      batch = batch._replace(class_id=ids, mask=np.repeat(batch.mask, 2, -1),
                             beta=np.ones((4, 2), np.float32))
      steps = driver.place_steps(2)
      with jax.transfer_guard("disallow"):
        state, metrics = driver.step(state, driver.place_batch(batch), steps)
    results[name] = jax.device_get((state.params, state.statistics, metrics))
  # A batch that is no number spoils no moment.
  bad = make_batch()
  bad = bad._replace(class_id=np.array([[0, 1], [0, 0], [0, 1], [1, 0]], np.int32),
                     mask=np.repeat(bad.mask, 2, -1), beta=np.ones((4, 2), np.float32))
  bad.image[0, 0, 0, 0] = np.nan
  kept = jax.device_get(state.statistics)
  state, _ = driver.step(state, driver.place_batch(bad), driver.place_steps(2))
  assert int(np.max(jax.device_get(state.skipped))) == 1
  assert largest_difference(jax.device_get(state.statistics), kept) == 0.0
  moved = jax.tree.map(jnp.subtract, results["jit"][1], variables["statistics"])
  assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(moved))
  assert largest_difference(results["jit"][0], variables["params"]) > 1e-3
  assert largest_difference(results["jit"], results["pmap"]) < 1e-5


# --- labels of whole images -------------------------------------------------------------------
def test_trained_from_images_masks_of_the_same_presence_are_the_same_step(model, params):
  """And the Dice that is told is of the masks, and no part of the loss."""
  optimizer = optax.sgd(0.1)
  step = jax.jit(make_step(model, optimizer, objective="image_level"))
  batch = make_batch()
  other = batch._replace(mask=np.where(batch.mask == UNLABELLED, batch.mask, 1).astype(np.uint8))
  (a, told), (b, told_of_other) = (step(new_state(params, optimizer), x) for x in (batch, other))
  assert largest_difference(a.params, params) > 1e-4
  assert largest_difference(a.params, b.params) == 0.0
  assert float(told["loss"]) == float(told_of_other["loss"])
  assert np.all(np.asarray(told["dice_K"]) < np.asarray(told_of_other["dice_K"]))
  absent = batch._replace(mask=np.where(batch.mask == UNLABELLED, batch.mask, 0).astype(np.uint8))
  c, _ = step(new_state(params, optimizer), absent)
  assert largest_difference(a.params, c.params) > 1e-4
