"""Labels of classes that nobody annotated: what follows from what is known, and nothing else."""

import dataclasses
import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from condseg_jax import losses
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Augment
from condseg_jax.config import Loss
from condseg_jax.data.batch import Batch
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.train.augment import mirrored
from condseg_jax.train.cutmix import draw_box
from condseg_jax.train.cutmix import next_samples
from condseg_jax.train.cutmix import SHARE
from condseg_jax.train.parallel import make_driver
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step
from condseg_jax.train.unlabelled import choose
from condseg_jax.train.unlabelled import known
from condseg_jax.train.unlabelled import make_complete

SHAPE = (4, 8, 8)
CLASSES = 4
# Class 3 is a part of class 0; all others exclude each other.
EXCLUSIVE = ~np.eye(CLASSES, dtype=bool)
EXCLUSIVE[0, 3] = EXCLUSIVE[3, 0] = False
LATERAL = np.zeros((CLASSES, 3), bool)
OFF = Augment(**dict.fromkeys(("rotate", "zoom", "shift", "scale", "offset", "gamma", "noise"), 0))
MIXED = dataclasses.replace(OFF, mirror=("W",), cutmix=0.7)


def make_sample(rng, decodes=2, shape=(3, 4)):
  """A sample that annotates some of its decodes."""
  mask = rng.choice([NEGATIVE, POSITIVE, UNLABELLED], (*shape, decodes)).astype(np.uint8)
  beta = rng.choice([0.0, 0.5, 1.0], decodes).astype(np.float32)
  return Batch(image=rng.normal(size=(*shape, 1)).astype(np.float32),
               class_id=rng.permutation(CLASSES)[:decodes].astype(np.int32),
               mask=np.where(beta > 0, mask, np.uint8(UNLABELLED)), beta=beta, index=np.int32(0),
               dataset=np.int32(0))


def make_batch(seed=0, size=4, classes=(0, 1)):
  """Each image annotates one class; a part of it is unlabelled."""
  rng = np.random.default_rng(seed)
  image = rng.normal(size=(size, *SHAPE, 1)).astype(np.float32)
  mask = (image > 0.5).astype(np.uint8)
  mask[:, :1] = UNLABELLED
  return Batch(image=image, class_id=np.resize(np.array(classes, np.int32), size)[:, None],
               mask=mask, beta=np.ones((size, 1), np.float32),
               index=np.arange(size, dtype=np.int32),
               dataset=np.resize(np.arange(len(classes), dtype=np.int32), size))


# --- what is known ------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), decodes=st.integers(1, CLASSES))
def test_what_is_known_of_a_class(seed, decodes):
  """Its mask where it has one; else negative on annotated classes that exclude it; else nothing."""
  sample = make_sample(np.random.default_rng(seed), decodes)
  ids = np.arange(CLASSES, dtype=np.int32)
  mask, beta = jax.device_get(known(jnp.asarray(ids), sample, jnp.asarray(EXCLUSIVE)))
  for c in ids:
    expected = np.full(mask.shape[:-1], UNLABELLED)
    for n in np.flatnonzero(sample.beta == 1):
      if EXCLUSIVE[sample.class_id[n], c]:
        expected[sample.mask[..., n] == POSITIVE] = NEGATIVE
    own = [n for n in np.flatnonzero(sample.beta) if sample.class_id[n] == c]
    if own:
      expected = sample.mask[..., own[0]]
    np.testing.assert_array_equal(mask[..., c], expected)
    assert beta[c] == (sample.beta[own[0]] if own else 0)


def test_a_class_that_overlaps_is_never_made_negative():
  sample = make_sample(np.random.default_rng(0), 1)._replace(
      class_id=np.array([3], np.int32), beta=np.ones(1, np.float32),
      mask=np.full((3, 4, 1), POSITIVE, np.uint8))
  mask, _ = known(jnp.arange(CLASSES), sample, jnp.asarray(EXCLUSIVE))
  assert (mask[..., 0] == UNLABELLED).all()  # the whole of which 3 is a part
  assert (mask[..., 1:3] == NEGATIVE).all()


# --- which classes ------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), decodes=st.integers(1, CLASSES), further=st.integers(0, 3))
def test_the_classes_of_a_sample(seed, decodes, further):
  sample = make_sample(np.random.default_rng(seed), decodes)
  count = min(decodes + further, CLASSES)
  ids = np.asarray(choose(sample, jax.random.key(seed), jnp.asarray(EXCLUSIVE), count))
  annotated = sample.beta > 0
  assert len(set(ids)) == count and set(ids) <= set(range(CLASSES))
  np.testing.assert_array_equal(ids[:decodes][annotated], sample.class_id[annotated])
  drawn = np.delete(ids, np.flatnonzero(annotated))
  excluded = EXCLUSIVE[sample.class_id[sample.beta == 1]].any(0)
  excluded[sample.class_id[annotated]] = False
  assert excluded[drawn].sum() == min(len(drawn), excluded.sum())


def test_classes_are_drawn_uniformly():
  sample = make_sample(np.random.default_rng(0), 1)._replace(
      class_id=np.array([1], np.int32), beta=np.ones(1, np.float32))
  draw = jax.vmap(lambda key: choose(sample, key, jnp.asarray(EXCLUSIVE), 2)[1])
  counts = np.bincount(draw(jax.random.split(jax.random.key(0), 3000)), minlength=CLASSES)
  assert counts[1] == 0 and np.all(np.abs(counts[[0, 2, 3]] - 1000) < 100)


# --- boxes of other images ----------------------------------------------------------------------
def complete(batch, augmentation=MIXED, decodes=2, lateral=LATERAL, key=0):
  made = jax.jit(make_complete(EXCLUSIVE, decodes, augmentation, lateral), static_argnums=2)
  return jax.device_get(made(batch, jax.random.key(key), None))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), shape=st.sampled_from([(8, 16, 12), (20, 30)]))
def test_a_box_is_one_box_of_an_allowed_size(seed, shape):
  box = np.asarray(draw_box(jax.random.key(seed), shape))
  sides = [np.flatnonzero(box.any(tuple(a for a in range(box.ndim) if a != axis)))
           for axis in range(box.ndim)]
  if box.any():  # a side of less than a voxel may fall between two
    lengths = np.array([side[-1] - side[0] + 1 for side in sides])
    assert box.sum() == np.prod(lengths)
    assert np.prod(lengths - 1) <= SHARE[1] * box.size and SHARE[0] * box.size <= np.prod(
        lengths + 1)


def test_boxes_have_the_mean_share():
  boxes = jax.vmap(lambda key: draw_box(key, (40, 40)))(jax.random.split(jax.random.key(0), 500))
  assert abs(float(boxes.mean()) - np.mean(SHARE)) < 0.02


def test_the_partner_is_the_next_sample_wherever_it_lies():
  index = np.array([2, 0, 3, 1], np.int32)
  np.testing.assert_array_equal(next_samples(index, index, None), [3, 1, 0, 2])
  devices = jax.pmap(lambda i: next_samples(i, i, "data"), "data")(index.reshape(2, 2))
  np.testing.assert_array_equal(devices, [[3, 1], [0, 2]])


@pytest.mark.parametrize("seed", range(4))
def test_a_box_brings_the_image_and_what_is_known_there(seed):
  """Unlabelled stays unlabelled: no voxel is known that was not where it comes from."""
  batch = make_batch(seed)._replace(beta=np.array([[1], [1], [0], [1]], np.float32))
  out = complete(batch, dataclasses.replace(MIXED, cutmix=1.0, mirror=()), decodes=3, key=seed)
  for b in range(4):
    own, partner = (jax.tree.map(lambda x, i=i: x[i], batch) for i in (b, (b + 1) % 4))
    box = (out.image[b] != own.image)[..., 0]
    assert box.any()
    np.testing.assert_array_equal(out.image[b], np.where(box[..., None], partner.image, own.image))
    ids = jnp.asarray(out.class_id[b])
    here, there = (jax.device_get(known(ids, x, jnp.asarray(EXCLUSIVE))) for x in (own, partner))
    np.testing.assert_array_equal(out.mask[b], np.where(box[..., None], there[0], here[0]))
    np.testing.assert_array_equal(out.beta[b], np.maximum(here[1], there[1]))
    if own.beta and partner.beta:  # both classes are decoded, as annotated
      assert list(out.class_id[b][:2]) == [own.class_id[0], partner.class_id[0]]
      assert list(out.beta[b]) == [1, 1, 0]
    if not own.beta:  # a bare image becomes one of its partner's class
      assert out.class_id[b][0] == partner.class_id[0] and out.beta[b][0] == 1
      assert (out.mask[b, ..., 0][~box] == UNLABELLED).all()


@pytest.mark.parametrize("own, other, mixed", [(1, 1, 1), (1, 0.5, 0.5), (0.5, 1, 0.5),
                                               (0.5, 0.5, 0.5), (0.5, 0, 0.5), (0, 0.5, 0.5)])
def test_a_mask_that_is_partly_pseudo_weighs_as_such(own, other, mixed):
  """Of one class; what nobody annotated there makes no other class negative."""
  batch = make_batch(classes=(0, 0))._replace(
      beta=np.resize(np.array([own, other], np.float32), 4)[:, None],
      dataset=np.resize(np.arange(2, dtype=np.int32), 4))
  out = complete(batch, dataclasses.replace(MIXED, cutmix=1.0, mirror=()))
  assert out.class_id[0][0] == 0 and out.beta[0][0] == np.float32(mixed)
  known_from = {0: own, 1: other}
  boxes = (out.image != batch.image)[..., 0]
  for b in range(4):
    place = [~boxes[b], boxes[b]]
    for inside in (0, 1):
      if known_from[(b + inside) % 2] < 1:
        assert (out.mask[b, ..., 1][place[inside]] == UNLABELLED).all()


def test_images_of_one_dataset_are_not_mixed():
  batch = make_batch()._replace(dataset=np.array([0, 0, 1, 1], np.int32))
  out = complete(batch, dataclasses.replace(MIXED, cutmix=1.0), decodes=1)
  changed = (out.image != batch.image).any((1, 2, 3, 4))
  np.testing.assert_array_equal(changed, [False, True, False, True])
  np.testing.assert_array_equal(out.mask[::2], batch.mask[::2])


def test_boxes_respect_sides():
  """Where image and partner were mirrored differently, and a class of one of them has sides."""
  batch, settings_ = make_batch(size=64), dataclasses.replace(MIXED, cutmix=1.0)
  lateral = LATERAL.copy()
  lateral[1, 2] = True
  out = complete(batch, settings_, lateral=lateral, decodes=1)
  flips = np.asarray(mirrored(batch, jax.random.key(0), settings_, jnp.asarray(lateral)))
  assert flips[::2, 2].any() and not flips[1::2].any()  # the class with sides is not mirrored
  same = (flips == np.roll(flips, -1, 0)).all(1)
  changed = (out.image != batch.image).any((1, 2, 3, 4))
  np.testing.assert_array_equal(changed, same)
  free = complete(batch, settings_, decodes=1)
  assert (free.image != batch.image).any((1, 2, 3, 4)).all()


def test_samples_are_mixed_with_the_probability_asked_for():
  batch = make_batch(size=64)
  out = complete(batch, dataclasses.replace(MIXED, cutmix=0.25), decodes=1)
  assert 6 <= (out.image != batch.image).any((1, 2, 3, 4)).sum() <= 26


# --- the loss -----------------------------------------------------------------------------------
def test_the_loss_is_the_mean_softplus_where_another_class_is_known():
  rng = np.random.default_rng(1)
  z = rng.normal(size=(2, 5, 3)).astype(np.float32)
  mask = np.full((2, 5, 3), UNLABELLED, np.uint8)
  mask[0, :2, 1], mask[0, 3:, 2], mask[1, :, 0] = NEGATIVE, NEGATIVE, POSITIVE
  ids = np.array([[0, 1, 2], [1, 0, 2]], np.int32)
  beta = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
  alpha = np.array([1.0, 3.0, 0.5], np.float32)
  loss = functools.partial(losses.exclusion, mask_BDHWN=mask, class_id_BN=ids, beta_BN=beta,
                           alpha_K=jnp.asarray(alpha), weight=0.2, global_batch=2)
  softplus = np.log1p(np.exp(z))
  expected = 0.2 / 2 * (3.0 * softplus[0, :2, 1].mean() + 0.5 * softplus[0, 3:, 2].mean()) / 2
  np.testing.assert_allclose(loss(z), expected, rtol=1e-6)
  gradient = np.asarray(jax.grad(loss)(z))
  assert (gradient[(mask == UNLABELLED) | (np.arange(3) == 0)] == 0).all()
  assert (gradient[0, :2, 1] > 0).all() and (gradient[0, 3:, 2] > 0).all()


# --- the step -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model():
  return DenseUNet(codes=(-0.5, 0.7, 0.1, 0.3), strides=((2, 2, 2),), layers_per_level=(1, 1),
                   channels=4, growth=4)


@pytest.fixture(scope="module")
def params(model):
  image = jnp.zeros((1, *SHAPE, 1))
  return jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))["params"]


def make_step(model, decodes=2, weight=0.5, augmentation=OFF, complete=None,
              objective="dice_bce", **changes):
  return make_train_step(
      model, optax.sgd(0.1), objective=losses.make_objective(Loss(objective=objective)),
      augmentation=augmentation,
      spacing=(2.0, 1.0, 1.0), lateral_axes=LATERAL,
      alpha_K=np.ones(CLASSES), ema_decay=0.0, seed=3, exclusion_weight=weight,
      complete=complete or make_complete(EXCLUSIVE, decodes, augmentation, LATERAL),
      **changes)


def new_state(params):
  return TrainState.create({"params": jax.tree.map(jnp.copy, params)}, optax.sgd(0.1), ema=False)


def largest_difference(a, b):
  return max(float(np.abs(np.asarray(x) - np.asarray(y)).max())
             for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_where_nothing_is_known_the_gradient_is_exactly_zero(model, params):
  step = jax.jit(make_step(model))
  batch = make_batch()
  unknown = batch._replace(beta=np.zeros_like(batch.beta))
  state, metrics = step(new_state(params), unknown)
  assert largest_difference(state.params, params) == 0.0 == float(metrics["loss"])
  # Of the other classes nothing follows from voxels that are not of the annotated class.
  absent = batch._replace(mask=np.where(batch.mask == POSITIVE, NEGATIVE, batch.mask))
  plain = jax.jit(make_step(model, 1, 0.0))
  (a, told), (b, of_plain) = (s(new_state(params), absent) for s in (step, plain))
  assert largest_difference(a.params, b.params) < 1e-6
  np.testing.assert_allclose(told["loss"], of_plain["loss"], rtol=1e-6)


def test_classes_compete_in_the_step(model, params):
  """The marginal loss of the step is that of all classes, in whatever order they are decoded."""
  step = jax.jit(make_step(model, CLASSES, 0.0, objective="marginal"))
  batch = make_batch()
  state, metrics = step(new_state(params), batch)
  z = jnp.stack([model.apply({"params": params}, batch.image, jnp.full(4, k, jnp.int32))
                 for k in range(CLASSES)], -1)
  own = np.arange(CLASSES) == batch.class_id
  mask = np.where(own[:, None, None, None], batch.mask, np.uint8(UNLABELLED))
  loss = losses.marginal(z, mask, Loss())
  np.testing.assert_allclose(metrics["loss"], loss.sum() / 4, rtol=1e-5)
  np.testing.assert_array_equal(metrics["count_K"], [2, 2, 0, 0])
  unknown = batch._replace(beta=np.zeros_like(batch.beta))
  state, metrics = step(new_state(params), unknown)
  assert largest_difference(state.params, params) == 0.0 == float(metrics["loss"])


def test_other_classes_are_pushed_down_and_the_log_tells_of_annotated_ones_alone(model, params):
  batch = make_batch()
  (a, told), (b, plain) = (jax.jit(make_step(model, *x))(new_state(params), batch)
                           for x in ((3, 0.5), (1, 0.0)))
  assert float(told["loss"]) > float(plain["loss"])
  assert largest_difference(a.params, b.params) > 1e-4
  for key in ("dice_K", "count_K"):
    np.testing.assert_allclose(told[key], plain[key], rtol=1e-6)
  pseudo = batch._replace(beta=np.array([[1], [0.5], [0], [0.5]], np.float32))
  state, metrics = jax.jit(make_step(model, 3, 0.5))(new_state(params), pseudo)
  np.testing.assert_array_equal(metrics["count_K"], [1, 0, 0, 0])  # pseudo-masks are of class 1
  assert metrics["dice_K"][0] > 0 == metrics["dice_K"][1]
  logits = lambda state: model.apply({"params": state.params}, batch.image,
                                     jnp.full(4, 2, jnp.int32))
  inside = batch.mask[..., 0] == POSITIVE
  assert logits(a)[inside].mean() < logits(b)[inside].mean()


@pytest.mark.slow
def test_jit_equals_pmap_and_a_batch_in_parts(model, params):
  """With boxes exchanged between the devices, and between the parts."""
  results = []
  for name, parts in (("jit", 1), ("pmap", 1), ("jit", 2)):
    step = make_step(model, augmentation=MIXED, grad_accum_steps=parts)
    driver = make_driver(name, step, 4, parts)
    state = driver.place_state(new_state(params))
    for seed in range(2):
      batch, steps = driver.place_batch(make_batch(seed)), driver.place_steps(2)
      with jax.transfer_guard("disallow"):
        state, metrics = driver.step(state, batch, steps)
    results.append(jax.device_get((state.params, metrics)))
  assert largest_difference(results[0][0], params) > 1e-3
  assert largest_difference(results[0], results[1]) < 1e-5
  assert largest_difference(results[0], results[2]) < 1e-5
