"""Decoders of FCN and DeepLab: written out, invalid settings, and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from condseg_jax.config import Augment
from condseg_jax.config import Loss
from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError
from condseg_jax.infer.full_volume import full_volume_slabs
from condseg_jax.losses import make_objective
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.decoders import DeepLab
from condseg_jax.models.decoders import FCN
from condseg_jax.models.decoders import LinearUpsample
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.layers import convolve_native
from condseg_jax.models.memory import training_bytes
from condseg_jax.models.network import class_logits
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step

STYLE = BlockConfig("none", "relu")
NET = dict(codes=(0.7, -0.5, 0.1), strides=((2, 2), (2, 2), (1, 1)), layers_per_level=(1, 1, 1, 1),
           channels=8, growth=8, rates=(1, 2), position="output_head", mechanism="output")


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def applied(module, *arguments):
  params = jax.jit(module.init)(jax.random.key(0), *arguments)["params"]
  params = jax.tree.map(lambda p: 0.3 * normal(p.size, *p.shape), params)
  return jax.jit(module.apply)({"params": params}, *arguments), params


def linear(x, shape):
  """Interpolates axis by axis: the centre of voxel i is at (i + 1/2) n/m - 1/2."""
  x = np.asarray(x, np.float64)
  for axis, size in enumerate(shape, 1):
    old = x.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    x = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, x)
  return x


@pytest.mark.parametrize("coarse, fine", [((2, 3), (4, 12)), ((2, 1, 3), (2, 4, 6))])
def test_linear_upsampling(coarse, fine):
  x = normal(0, 2, *coarse, 3)
  found = jax.jit(functools.partial(LinearUpsample(fine).apply, {}))(x)
  np.testing.assert_allclose(found, linear(x, fine), atol=1e-5)


def test_fcn_sums_the_scores_of_the_three_coarsest_levels():
  sizes = (16, 8, 4, 2)
  levels = [normal(i, 2, n, n, 3 + i) for i, n in enumerate(sizes)]
  found, params = applied(FCN(5, STYLE), levels)
  assert set(params) == {"score_1", "score_2", "score_3"}
  y = None
  for level in (3, 2, 1):
    p = params[f"score_{level}"]
    score = np.asarray(levels[level] @ p["kernel"][0, 0]) + np.asarray(p["bias"])
    y = score if y is None else score + linear(y, score.shape[1:-1])
  np.testing.assert_allclose(found, linear(y, (16, 16)), atol=1e-4)


def test_the_pyramid_of_deeplab():
  """Without normalisation, written out; taps beyond the border read zeros."""
  levels = [normal(0, 2, 8, 10, 2), normal(1, 2, 4, 5, 3)]
  found, params = applied(DeepLab(4, (2, 7), STYLE), levels)
  x = levels[1]

  def layer(x, p, dilation=1):
    y = convolve_native(x, p["conv"]["kernel"], dilation)
    return jax.nn.relu(y + jnp.broadcast_to(p["conv"]["bias"], y.shape))

  centre = {"conv": {**params["rate_7"]["conv"],
                     "kernel": params["rate_7"]["conv"]["kernel"][1:2, 1:2]}}
  mean = layer(x.mean((1, 2), keepdims=True), params["mean"])
  parts = [layer(x, params["point"]), layer(x, params["rate_2"], 2), layer(x, centre),
           jnp.broadcast_to(mean, x.shape)]
  y = layer(jnp.concatenate(parts, -1), params["join"])
  np.testing.assert_allclose(found, linear(y, (8, 10)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("decoder, ndim, where", [
    ("fcn", 3, dict(position="none")), ("deeplab", 2, dict(position="none")), ("deeplab", 3, {}),
    ("fcn", 2, dict(position="output_head", mechanism="dynamic")),
    ("fcn", 2, dict(position="input", mechanism="film")),
    ("deeplab", 2, dict(position="encoder", mechanism="channel"))])
def test_networks(decoder, ndim, where):
  strides = tuple((1,) * (ndim - 2) + level for level in NET["strides"])
  model = DenseUNet(**{**NET, "strides": strides, "decoder": decoder, **where})
  shape = (3, 8, 12)[-ndim:]
  assert model.stride == (1, 4, 4)[-ndim:]
  image, ids = normal(2, 2, *shape, 1), jnp.array([[0, 2], [1, 1]])
  variables = jax.jit(model.init)(jax.random.key(0), image, ids[:, 0])
  assert not {k for k in variables["params"] if k.startswith(("up_", "merge_"))}
  found = jax.jit(functools.partial(class_logits, model))(variables, image, ids)
  assert found.shape == (2, *shape, 2) and found.dtype == jnp.float32
  change = np.abs(found[0, ..., 0] - found[0, ..., 1]).mean()
  assert change == 0 if model.position == "none" else change > 0.01
  np.testing.assert_allclose(found[1, ..., 0], found[1, ..., 1], atol=1e-6)


def test_a_level_that_is_not_pooled_is_dilated():
  """With `deeplab` one layer of the coarsest block reaches 2 columns to each side, not 1."""
  reach = {}
  for decoder in ("deeplab", "fcn"):
    model = DenseUNet(**{**NET, "strides": ((1, 1),), "layers_per_level": (0, 1),
                         "decoder": decoder, "norm": "none", "position": "none"})
    image = jnp.zeros((1, 15, 15, 1))
    variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))

    def coarsest(image, model=model, variables=variables):
      _, kept = model.apply(variables, image, method=model.encode, capture_intermediates=True,
                            mutable=["intermediates"])
      return kept["intermediates"]["down_1"]["layer_0"]["conv"]["__call__"][0][0, 7, 7].sum()
    reached = np.abs(jax.jit(jax.grad(coarsest))(image))[0, :, :, 0] > 0
    reach[decoder] = np.ptp(np.flatnonzero(reached.any(1))) // 2
  assert reach == {"deeplab": 1 + 2, "fcn": 1 + 1}  # including the stem


def test_dilation_grows_with_every_level_that_is_not_pooled():
  net = DenseUNet(**{**NET, "strides": ((2, 2), (1, 1), (1, 1)), "layers_per_level": (0, 0, 1, 1),
                     "decoder": "deeplab"})
  assert [net._dilation(level) for level in range(4)] == [1, 1, 2, 4]


@pytest.mark.parametrize("settings, fault", [
    (dict(decoder="segnet"), "decoder 'segnet' is not one of"),
    (dict(decoder="fcn", position="decoder", mechanism="channel"), "has no class conditioning"),
    (dict(decoder="deeplab", position="per_class_decoders"), "has no class conditioning"),
    (dict(decoder="deeplab", rates=(0,)), "rates"),
    (dict(decoder="fcn", deep_supervision=1), "choose 0 to 0"),
    (dict(decoder="fcn", partition="depth"), "cannot be split")])
def test_invalid_settings(settings, fault):
  with pytest.raises(ValueError, match=fault):
    DenseUNet(**{**NET, **settings}).check()


def test_a_volume_cannot_be_split():
  model = DenseUNet(**{**NET, "decoder": "deeplab"})
  with pytest.raises(InputError, match="partition: a volume cannot be split .*deeplab"):
    next(full_volume_slabs(model, {}, np.zeros((8, 8, 1), np.float32), [0]))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["fcn", "deeplab"])
def test_learning_and_its_memory(decoder):
  """Squares of three intensities, one class each: forty steps, and the memory of a step."""
  model = DenseUNet(**{**NET, "decoder": decoder})
  rng = np.random.default_rng(0)
  label = np.kron(rng.integers(0, 3, (4, 4, 4)), np.ones((1, 8, 8), int))
  image = (label - 1 + 0.1 * rng.normal(size=label.shape)).astype(np.float32)[..., None]
  batch = Batch(image=image, class_id=np.tile(np.arange(3, dtype=np.int32), (4, 1)),
                mask=np.stack([label == k for k in range(3)], -1).astype(np.uint8),
                beta=np.ones((4, 3), np.float32), index=np.arange(4, dtype=np.int32),
                dataset=np.zeros(4, np.int32))
  variables = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(4, jnp.int32))
  optimizer = optax.adam(0.02)
  step = jax.jit(make_train_step(
      model, optimizer, objective=make_objective(Loss()), augmentation=Augment(probability=0.0),
      spacing=(1.0, 1.0), lateral_axes=np.zeros((3, 2), bool), alpha_K=np.ones(3), ema_decay=0.0,
      seed=0))
  state = TrainState.create(variables, optimizer, ema=False)
  compiled = step.lower(state, batch).compile()
  taken = compiled.memory_analysis().temp_size_in_bytes
  assert 0.7 * taken < training_bytes(model, image.shape[1:-1], 1, 4, 3) < 5 * taken
  losses = []
  for _ in range(40):
    state, metrics = compiled(state, batch)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.5 * losses[0]
