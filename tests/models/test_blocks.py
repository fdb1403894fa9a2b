"""Blocks against their layers written out, with every mechanism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import BLOCKS
from condseg_jax.models.conditioning import Condition
from condseg_jax.models.conditioning import MECHANISMS
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.layers import convolve_native
from condseg_jax.models.network import class_logits


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, SKIP = normal(0, 2, 6, 5, 3), normal(1, 2, 6, 5, 2)
CONDITION = Condition(normal(2, 2, 3), jnp.array([0, 1]))


def block(kind, depth=2, features=4, **style):
  return BLOCKS[kind](depth, 2, features, 2, BlockConfig(**{"norm": "none", "activation": "relu",
                                                      "classes": 3, **style}))


def applied(module, *arguments):
  """Returns the output of a module with random parameters, and the parameters."""
  params = module.init(jax.random.key(0), *arguments)["params"]
  params = jax.tree.map(lambda p: 0.3 * normal(p.size, *p.shape), params)
  return module.apply({"params": params}, *arguments), params


def convolved(x, params):
  y = convolve_native(x, params["conv"]["kernel"])
  return y + jnp.broadcast_to(params["conv"]["bias"], y.shape) if "bias" in params["conv"] else y


def test_a_plain_block_is_a_sequence_of_layers():
  """Without normalisation: relu(conv(relu(conv([x, skip]))))."""
  found, params = applied(block("plain"), X, SKIP)
  assert set(params) == {"layer_0", "layer_1"}
  y = jax.nn.relu(convolved(jnp.concatenate([X, SKIP], -1), params["layer_0"]))
  np.testing.assert_allclose(found, jax.nn.relu(convolved(y, params["layer_1"])), atol=1e-5)


def test_a_residual_block_is_activated_after_the_sum():
  """Three layers: a unit of two with a projection, and a unit of one."""
  found, params = applied(block("residual", depth=3), X, SKIP)
  assert set(params) == {"layer_0", "layer_1", "layer_2", "projection"}
  both = jnp.concatenate([X, SKIP], -1)
  y = convolved(jax.nn.relu(convolved(both, params["layer_0"])), params["layer_1"])
  y = jax.nn.relu(y + convolved(both, params["projection"]))
  np.testing.assert_allclose(found, jax.nn.relu(y + convolved(y, params["layer_2"])), atol=1e-5)
  assert params["projection"]["conv"]["kernel"].shape == (1, 1, 5, 4)


def test_without_a_change_of_width_the_shortcut_is_the_identity():
  """Layers with zero output leave the activated input."""
  module = block("residual", features=3, norm="group")
  params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), X)["params"])
  assert "projection" not in params
  np.testing.assert_array_equal(module.apply({"params": params}, X), jax.nn.relu(X))


@pytest.mark.parametrize("kind", list(BLOCKS))
def test_layers_are_dilated(kind):
  """A layer with dilation 3 sees three voxels to each side."""
  module = BLOCKS[kind](1, 2, 4, 2, BlockConfig("none", "leaky_relu"), 3)
  x = normal(0, 1, 15, 15, 3)
  variables = module.init(jax.random.key(0), x)
  gradient = jax.grad(lambda x: module.apply(variables, x)[0, 7, 7].sum())(x)
  assert np.ptp(np.flatnonzero(np.abs(gradient).sum((0, 2, 3)))) == 6


@pytest.mark.parametrize("mechanism", [m for m, what in MECHANISMS.items()
                                       if "decoder" in what.positions])
@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_every_mechanism_conditions_every_layer(kind, mechanism):
  module = block(kind, depth=2, norm="group", mechanism=mechanism)
  variables = module.init(jax.random.key(0), X, SKIP, CONDITION)
  assert {name for name, layer in variables["params"].items() if "condition" in layer} == {
      "layer_0", "layer_1"}
  a, b = (module.apply(variables, X, SKIP, CONDITION._replace(vector_BE=v))
          for v in (CONDITION.vector_BE, CONDITION.vector_BE[::-1]))
  assert a.shape == (2, 6, 5, 4) and np.abs(a - b).mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "plain"])
@pytest.mark.parametrize("position, strides", [("decoder", ((2, 2),) * 2),
                                               ("per_class_decoders", ((2, 2),)),
                                               ("encoder", ((1, 2, 2),))])
def test_networks_of_other_blocks(kind, position, strides):
  """2-D and 3-D: shapes; all classes at once equal single passes; remat gives the same numbers."""
  settings = dict(codes=(0.7, -0.5), strides=strides, layers_per_level=(2, 1, 2)[:len(strides) + 1],
                  channels=4, position=position, encoder_block=kind, decoder_block=kind)
  shape = (2, 8, 8)[-len(strides[0]):]
  image, ids = normal(3, 2, *shape, 1), jnp.array([[0, 1], [1, 0]])
  model = DenseUNet(**settings)
  variables = jax.jit(model.init)(jax.random.key(0), image, ids[:, 0])
  found = class_logits(model, variables, image, ids)
  assert found.shape == (2, *shape, 2)
  for n in range(2):
    np.testing.assert_allclose(found[..., n], model.apply(variables, image, ids[:, n]), atol=1e-5)
  again = class_logits(DenseUNet(**settings, remat=True), variables, image, ids)
  np.testing.assert_allclose(found, again, atol=1e-5)


def test_encoder_and_decoder_can_have_different_blocks():
  model = DenseUNet(codes=(0.7, -0.5), strides=((2, 2),), layers_per_level=(2, 2), channels=4,
                    encoder_block="residual")
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)),
                          jnp.zeros(1, jnp.int32))["params"]
  assert set(params["down_1"]) == {"layer_0", "layer_1", "projection"}
  assert set(params["merge_0"]) == {"layer_0", "layer_1", "join"}


@pytest.mark.parametrize("settings, fault", [
    (dict(encoder_block="swin"), "encoder_block"), (dict(decoder_block="swin"), "decoder_block"),
    (dict(encoder_block="plain", layers_per_level=(1, 0)), "encoder_block 'plain' has no layer"),
    (dict(decoder_block="residual", decoder_layers_per_level=(0,)),
     "decoder_block 'residual' has no layer")])
def test_unknown_and_empty_blocks(settings, fault):
  with pytest.raises(ValueError, match=fault):
    DenseUNet(**{"codes": (0.1, 0.2), "strides": ((2, 2),), "layers_per_level": (1, 1),
                 **settings}).check()
