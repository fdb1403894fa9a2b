"""Class conditioning: mechanisms, constant channels and class vectors."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models import conditioning
from condseg_jax.models import heads
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import Layer
from condseg_jax.models.class_vector import ClassVector
from condseg_jax.models.conditioning import Condition
from condseg_jax.models.conditioning import ConditionedLayer
from condseg_jax.models.conditioning import constant_channels
from condseg_jax.models.layers import convolve_native


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def literally(vector_BE, kernel, shape):
  """Convolves materialised channels with zero padding."""
  ones = jnp.ones((1, *shape, 1))
  channels = vector_BE.reshape(len(vector_BE), *(1,) * len(shape), -1) * ones
  return convolve_native(channels, kernel)


def acted(mechanism, y, vector, *, ids=None, shared=None, classes=3, train=False):
  """Returns the output of a mechanism with random parameters, and the parameters."""
  ids = jnp.zeros(len(y), jnp.int32) if ids is None else ids
  module = ConditionedLayer(mechanism, classes, (3,) * (y.ndim - 2))
  arguments = y, Condition(vector, ids), 8, shared
  variables = module.init(jax.random.key(0), *arguments)
  params = jax.tree.map(lambda p: normal(p.size, *p.shape), variables["params"])
  variables = {**variables, "params": params}
  return module.apply(variables, *arguments, mutable=["statistics"] if train else False), params


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape, kernel_size", [
    ((6, 5), (3, 3)), ((4, 4), (1, 1)), ((5, 3, 4), (3, 3, 3)), ((3, 4, 2), (1, 1, 1)),
    ((1, 4, 5), (3, 1, 5))])
def test_constant_channels_equal_the_literal_concatenation(shape, kernel_size, size):
  vector, kernel = normal(0, 2, size), normal(1, *kernel_size, size, 4) / math.prod(kernel_size)
  found, pull = jax.vjp(lambda v, k: constant_channels(v, k, shape), vector, kernel)
  expected, pull_literal = jax.vjp(lambda v, k: literally(v, k, shape), vector, kernel)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Means, so that the tolerance does not depend on the number of voxels.
  weight = normal(2, *found.shape) / math.prod(shape)
  for a, b in zip(pull(weight), pull_literal(weight), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_constant_channels_of_a_dilated_convolution():
  vector, kernel = normal(0, 2, 3), normal(1, 3, 3, 3, 4)
  ones = jnp.ones((1, 7, 6, 1))
  expected = convolve_native(vector.reshape(2, 1, 1, 3) * ones, kernel, 2)
  np.testing.assert_allclose(constant_channels(vector, kernel, (7, 6), dilation=2), expected,
                             atol=1e-5)


def test_inside_a_class_is_a_bias_and_at_the_border_it_is_less():
  """With a kernel of ones: the class value times the taps inside, 27, 18, 12 or 8."""
  found = np.asarray(constant_channels(jnp.array([[0.5]]), jnp.ones((3, 3, 3, 1, 1)), (4, 4, 4)))
  taps = np.array([2, 3, 3, 2])
  expected = 0.5 * np.einsum("d,h,w->dhw", taps, taps, taps)
  np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-6)


def test_products_of_the_condition_use_full_precision():
  """An accelerator's default (TF32, bfloat16) would round the codes."""
  jaxpr = jax.make_jaxpr(lambda v, k: constant_channels(v, k, (4, 4)))(
      jnp.zeros((1, 1)), jnp.zeros((3, 3, 1, 2)))
  products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
  assert len(products) == 3
  for eqn in products:
    assert set(eqn.params["precision"]) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_a_layer_without_normalisation_is_the_paper_s_concatenation(norm):
  """Without it: activation(conv([x, shared, constant])). With it, the term comes after."""
  shape, kernel_size, size = (4, 3, 5), (3, 3, 3), 2
  x, shared, vector = normal(0, 2, *shape, 3), normal(1, 2, *shape, 4), normal(2, 2, size)
  layer = Layer(8, kernel_size, BlockConfig(norm, "relu"))
  condition = Condition(vector, jnp.zeros(2, jnp.int32))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, shared, condition)["params"]
  params = jax.tree.map(lambda s: normal(3, *s.shape), shapes)
  found = layer.apply({"params": params}, x, shared, condition)

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


def test_codes_closer_than_bfloat16_resolves():
  """Near 0.7 bfloat16 has steps of 1/256, so codes 1/1024 apart would be rounded together."""
  codes = (0.7, 0.7 + 1 / 1024)
  assert jnp.bfloat16(codes[0]) == jnp.bfloat16(codes[1])
  vectors = ClassVector("hash", codes, 1).apply({}, jnp.arange(2))
  found, params = acted("channel", jnp.zeros((2, 6, 6, 4)), vectors)
  kernel = params["kernel"].sum((0, 1))[0]
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found[1, 3, 3] - found[0, 3, 3], kernel / 1024, atol=2e-7)


def test_one_hot_vectors():
  vector = ClassVector("one_hot", (0.1, 0.2, 0.3), 8)
  np.testing.assert_array_equal(vector.apply({}, jnp.array([2, 0])), [[0, 0, 1], [1, 0, 0]])


def test_a_text_vector_is_a_learned_projection_of_its_direction():
  """The norm of a text embedding has no effect; the embedding itself is not learned."""
  texts = ((3.0, 4.0), (0.3, 0.4), (0.0, -2.0))
  vector, ids = ClassVector("text", (0.1, 0.2, 0.3), 5, texts), jnp.array([0, 1, 2])
  variables = vector.init(jax.random.key(0), ids)
  (kernel,) = jax.tree.leaves(variables)
  found = vector.apply(variables, ids)
  np.testing.assert_allclose(found[0], 0.6 * kernel[0] + 0.8 * kernel[1], atol=1e-6)
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_allclose(found[2], -kernel[1], atol=1e-6)


Y = normal(5, 4, 6, 5, 4)
VECTOR = normal(6, 4, 3)


def by_voxel(a_BC):
  return np.asarray(a_BC)[:, None, None]


def test_film_scales_and_shifts_each_channel():
  for name in ("film", "norm"):  # the same after other normalisations
    found, params = acted(name, Y, VECTOR)
    gamma, beta = (by_voxel(VECTOR @ params[k]["kernel"]) for k in ("gamma", "beta"))
    np.testing.assert_allclose(found, (1 + gamma) * Y + beta, atol=1e-5)


def test_conditional_normalisation_has_no_shared_scale():
  """With one-hot vectors its rows are those of Dumoulin et al."""
  layer = Layer(4, (3, 3), BlockConfig("instance", "relu", mechanism="norm", classes=3))
  condition = Condition(jnp.eye(3)[jnp.array([0, 2, 1, 1])], jnp.array([0, 2, 1, 1]))
  params = layer.init(jax.random.key(0), Y, None, condition)["params"]
  assert set(params) == {"conv", "condition"}
  convolved = convolve_native(Y, params["conv"]["kernel"])
  standard = (convolved - convolved.mean((1, 2), keepdims=True)) / convolved.std(
      (1, 2), keepdims=True)
  rows = {k: by_voxel(params["condition"][k]["kernel"][condition.class_id_B])
          for k in ("gamma", "beta")}
  np.testing.assert_allclose(layer.apply({"params": params}, Y, None, condition),
                             jax.nn.relu((1 + rows["gamma"]) * standard + rows["beta"]), atol=1e-3)


def test_batch_moments_weigh_classes_alike():
  """Three samples of class 0 and one of class 2: half of the moments each."""
  ids = jnp.array([0, 0, 2, 0])
  (found, changed), params = acted("batch_norm", Y, VECTOR, ids=ids, train=True)
  y = np.asarray(Y, np.float64)
  weights = np.array([1 / 6, 1 / 6, 1 / 2, 1 / 6])
  mean, square = (np.einsum("b,bhwc->c", weights, y ** n) / 30 for n in (1, 2))
  gamma, beta = (by_voxel(VECTOR @ params[k]["kernel"]) for k in ("gamma", "beta"))
  wanted = (1 + gamma) * (y - mean) / np.sqrt(square - mean ** 2) + beta
  np.testing.assert_allclose(found, wanted, atol=1e-4)
  kept = changed["statistics"]["moments"]
  np.testing.assert_allclose(kept[0], 0.1 * mean, atol=1e-5)
  np.testing.assert_allclose(kept[1], 0.9 + 0.1 * square, atol=1e-5)


def test_batch_normalisation_predicts_with_its_running_moments():
  """They start at mean 0 and square 1; a sample then does not depend on its batch."""
  found, params = acted("batch_norm", Y, VECTOR)
  gamma, beta = (by_voxel(VECTOR @ params[k]["kernel"]) for k in ("gamma", "beta"))
  np.testing.assert_allclose(found, (1 + gamma) * Y + beta, atol=1e-4)


def test_gates_close_and_open():
  found, params = acted("channel_gate", Y, VECTOR)
  gate = jax.nn.sigmoid(VECTOR @ params["gate"]["kernel"])
  np.testing.assert_allclose(found, 2 * by_voxel(gate) * Y, atol=1e-5)
  half_open, _ = acted("channel_gate", Y, jnp.zeros((4, 3)))
  np.testing.assert_allclose(half_open, Y, atol=1e-6)


def test_a_spatial_gate_has_one_value_per_voxel():
  found, params = acted("spatial_gate", Y, VECTOR)
  hidden = Y @ params["features"]["kernel"][0, 0] + by_voxel(VECTOR @ params["gate"]["kernel"])
  gate = jax.nn.sigmoid(jax.nn.relu(hidden) @ params["psi"]["kernel"][0, 0])
  np.testing.assert_allclose(found, 2 * gate * Y, atol=1e-4)
  assert gate.std() > 0.05


def test_spade_on_a_constant_skip_is_film():
  skip = jnp.ones((4, 6, 5, 2))
  found, params = acted("spade", Y, VECTOR, shared=skip)
  weights = VECTOR @ params["class"]["kernel"]
  gamma, beta = (by_voxel(weights @ params[k]["kernel"][0, 0]) for k in ("gamma", "beta"))
  np.testing.assert_allclose(found, (1 + gamma) * Y + beta, atol=1e-4)
  varied, _ = acted("spade", Y, VECTOR, shared=normal(7, 4, 6, 5, 2))
  assert np.abs(varied - found).max() > 0.1


def test_output_channels_are_a_convolution_and_a_selection():
  head, ids = heads.OutputChannels(3), jnp.array([2, 0, 0, 1])
  params = jax.tree.map(lambda p: normal(p.size, *p.shape),
                        head.init(jax.random.key(0), Y, ids)["params"])
  every = Y @ params["kernel"].T + jnp.broadcast_to(params["bias"], (*Y.shape[:-1], 3))
  found = head.apply({"params": params}, Y, ids)
  np.testing.assert_allclose(found, [every[b, ..., k] for b, k in enumerate(ids.tolist())],
                             atol=1e-5)


def test_every_mechanism_has_its_equation_and_source():
  modules = {"dynamic": heads.DynamicHead, "output": heads.OutputChannels}
  for name, mechanism in conditioning.MECHANISMS.items():
    doc = (mechanism.apply or modules[name]).__doc__
    assert re.search(r"\b20[012]\d\)", doc), f"{name}: no paper"
    assert set(doc) & set("γσω⊙·"), f"{name}: no equation"
