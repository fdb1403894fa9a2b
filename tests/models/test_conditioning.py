"""The condition: constant channels without the channels, and vectors that stand for classes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models.conditioning import ClassVector
from condseg_jax.models.conditioning import constant_channels
from condseg_jax.models.conditioning import ConstantChannels
from condseg_jax.models.dense_unet import Layer
from condseg_jax.models.layers import convolve_native


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def literally(vector_BE, kernel, shape):
  """The channels made, and convolved with zero padding."""
  ones = jnp.ones((1, *shape, 1))
  channels = vector_BE.reshape(len(vector_BE), *(1,) * len(shape), -1) * ones
  return convolve_native(channels, kernel)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape, window", [
    ((6, 5), (3, 3)), ((4, 4), (1, 1)), ((5, 3, 4), (3, 3, 3)), ((3, 4, 2), (1, 1, 1)),
    ((1, 4, 5), (3, 1, 5))])
def test_constant_channels_equal_the_literal_concatenation(shape, window, size):
  vector, kernel = normal(0, 2, size), normal(1, *window, size, 4) / math.prod(window)
  found, pull = jax.vjp(lambda v, k: constant_channels(v, k, shape), vector, kernel)
  expected, pull_literal = jax.vjp(lambda v, k: literally(v, k, shape), vector, kernel)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Means, so that the tolerance is one of single precision and not of the number of voxels.
  weight = normal(2, *found.shape) / math.prod(shape)
  for a, b in zip(pull(weight), pull_literal(weight), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_inside_a_class_is_a_bias_and_at_the_border_it_is_less():
  """With a kernel of ones: the class value times the taps inside, 27, 18, 12 or 8."""
  found = np.asarray(constant_channels(jnp.array([[0.5]]), jnp.ones((3, 3, 3, 1, 1)), (4, 4, 4)))
  taps = np.array([2, 3, 3, 2])
  expected = 0.5 * np.einsum("d,h,w->dhw", taps, taps, taps)
  np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-6)


def test_products_of_the_condition_ask_for_full_precision():
  """An accelerator's default (TF32, bfloat16) would round the codes."""
  jaxpr = jax.make_jaxpr(lambda v, k: constant_channels(v, k, (4, 4)))(
      jnp.zeros((1, 1)), jnp.zeros((3, 3, 1, 2)))
  products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
  assert len(products) == 3
  for eqn in products:
    assert set(eqn.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_a_layer_without_normalisation_is_the_paper_s_concatenation(norm):
  """Without it: activation(conv([x, shared, constant])). With it, the summand comes after."""
  shape, window, size = (4, 3, 5), (3, 3, 3), 2
  x, shared, vector = normal(0, 2, *shape, 3), normal(1, 2, *shape, 4), normal(2, 2, size)
  layer = Layer(8, window, norm, "relu", jnp.float32)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, shared, vector)["params"]
  params = jax.tree.map(lambda s: normal(3, *s.shape), shapes)
  found = layer.apply({"params": params}, x, shared, vector)

  convolved = convolve_native(jnp.concatenate([x, shared], -1), params["conv"]["kernel"])
  summand = literally(vector, params["condition"]["kernel"], shape)
  if norm == "none":
    kernel = jnp.concatenate([params["conv"]["kernel"], params["condition"]["kernel"]], -2)
    ones = jnp.ones((1, *shape, 1))
    everything = jnp.concatenate([x, shared, vector.reshape(2, 1, 1, 1, size) * ones], -1)
    expected = convolve_native(everything, kernel) + jnp.broadcast_to(params["conv"]["bias"],
                                                                      summand.shape)
  else:
    axes = (1, 2, 3) if norm == "instance" else (1, 2, 3, 4)  # 8 channels are one group
    mean, sd = convolved.mean(axes, keepdims=True), convolved.std(axes, keepdims=True)
    weights = params["norm"]
    scale, bias = (jnp.broadcast_to(weights[k], summand.shape) for k in ("scale", "bias"))
    standard = (convolved - jnp.broadcast_to(mean, convolved.shape)) / jnp.broadcast_to(
        sd, convolved.shape)
    expected = standard * scale + bias + summand
  np.testing.assert_allclose(found, jax.nn.relu(expected), atol=1e-4)


def test_a_hash_condition_is_the_code_of_the_table():
  codes = (-0.5, 0.7046, 0.7086)
  vector = ClassVector("hash", codes, 8)
  ids = jnp.array([2, 0, 1, 1])
  variables = vector.init(jax.random.key(0), ids)
  assert not variables  # nothing is learned
  found = vector.apply(variables, ids)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, np.array([[0.7086], [-0.5], [0.7046], [0.7046]], np.float32))


def test_an_embedding_is_one_learned_vector_per_class():
  vector, ids = ClassVector("embedding", (0.1, 0.2, 0.3), 5), jnp.array([2, 0])
  variables = vector.init(jax.random.key(0), ids)
  table = variables["params"]["embedding"]
  assert table.shape == (3, 5) and table.dtype == jnp.float32
  np.testing.assert_array_equal(vector.apply(variables, ids), table[ids])
  gradient = jax.grad(lambda v: vector.apply(v, ids).sum())(variables)["params"]["embedding"]
  np.testing.assert_array_equal(gradient, [[1] * 5, [0] * 5, [1] * 5])


def test_codes_that_bfloat16_would_blur_stay_apart():
  """The step of bfloat16 near 0.7 is 1/256: of codes 1/1024 apart it makes one."""
  codes = (0.7, 0.7 + 1 / 1024)
  assert jnp.bfloat16(codes[0]) == jnp.bfloat16(codes[1])
  vectors = ClassVector("hash", codes, 1).apply({}, jnp.arange(2))
  condition = ConstantChannels(4, (3, 3), 8)
  variables = condition.init(jax.random.key(0), vectors, (6, 6))
  found = condition.apply(variables, vectors, (6, 6))
  kernel = variables["params"]["kernel"].sum((0, 1))[0]
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found[1, 3, 3] - found[0, 3, 3], kernel / 1024, atol=2e-7)
