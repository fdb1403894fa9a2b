"""Layers against reference operations."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models import layers


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(function, *args):
  """Returns the value, and the gradients of a random weighted sum of its elements."""
  weight = normal(9, *jax.eval_shape(function, *args).shape)

  def everything(weight, *args):
    value, pull = jax.vjp(function, *args)
    return value, *pull(weight)

  return jax.jit(everything)(weight, *args)


def assert_all_close(found, expected, atol):
  for a, b in zip(found, expected, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=atol)


def convolution_ranks(function, *args):
  """Returns the ranks of the inputs of all convolutions of a function."""
  def visit(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "conv_general_dilated":
        yield eqn.invars[0].aval.ndim
      for value in eqn.params.values():
        if hasattr(value, "eqns"):
          yield from visit(value)
  return list(visit(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize("shape, kernel_size", [
    ((4, 5, 6), (3, 3, 3)), ((3, 4, 4), (1, 1, 1)), ((1, 4, 5), (5, 1, 3))])
def test_a_convolution_by_depth_taps_is_the_native_one(shape, kernel_size):
  x, kernel = normal(0, 2, *shape, 3), normal(1, *kernel_size, 3, 2)
  assert_all_close(value_and_gradients(layers.convolve_by_depth_tap, x, kernel),
                   value_and_gradients(layers.convolve_native, x, kernel), 1e-4)


@pytest.mark.parametrize("shape, kernel_size", [((9, 8), (3, 3)), ((6, 5, 7), (3, 1, 3))])
def test_a_dilated_convolution_has_zeros_between_its_taps(shape, kernel_size):
  """Equals the convolution with a wider kernel, also for taps beyond the border."""
  x, kernel = normal(0, 2, *shape, 3), normal(1, *kernel_size, 3, 2)
  for dilation in (2, 7):
    def spread(kernel, dilation=dilation):
      wide = [dilation * (n - 1) + 1 for n in kernel_size]
      return jnp.zeros((*wide, 3, 2)).at[(slice(None, None, dilation),) * len(shape)].set(kernel)

    assert_all_close(
        value_and_gradients(lambda x, k, d=dilation: layers.convolve(x, k, d), x, kernel),
        value_and_gradients(lambda x, k: layers.convolve_native(x, spread(k)), x, kernel), 1e-4)


def test_the_convolution_is_centred_and_not_mirrored():
  """out(i) = Σ_t x(i + t) k(t), zeros outside."""
  x, k = normal(0, 5), normal(1, 3)
  padded = np.pad(x, 1)
  expected = [sum(padded[i + t] * k[t] for t in range(3)) for i in range(5)]
  for axis in range(3):
    shape, kernel_size = [1, 1, 1], [1, 1, 1]
    shape[axis], kernel_size[axis] = 5, 3
    found = layers.convolve(x.reshape(1, *shape, 1), k.reshape(*kernel_size, 1, 1))
    np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-6)


def test_no_3d_convolution_reaches_the_cpu():
  x, kernel = normal(0, 1, 4, 4, 4, 2), normal(1, 3, 3, 3, 2, 2)
  gradient = jax.grad(lambda *args: layers.convolve(*args).sum(), (0, 1))
  ranks = convolution_ranks(gradient, x, kernel)
  assert len(ranks) >= 6 and set(ranks) == {4}
  assert convolution_ranks(layers.convolve_native, x, kernel) == [5]  # the search works


@pytest.mark.parametrize("shape, kernel_size, strides", [
    ((6, 8), (3, 3), (2, 2)), ((4, 6, 8), (3, 3, 3), (2, 2, 2)), ((3, 4, 6), (3, 3, 3), (1, 2, 3)),
    ((4, 4, 4), (1, 3, 1), (2, 1, 2))])
def test_a_strided_convolution_keeps_the_first_voxel_of_every_block(shape, kernel_size, strides):
  x, kernel = normal(0, 2, *shape, 3), normal(1, *kernel_size, 3, 2)
  first = (slice(None), *(slice(None, None, stride) for stride in strides))
  strided = lambda x, kernel: layers.convolve_strided(x, kernel, strides)
  assert_all_close(value_and_gradients(strided, x, kernel),
                   value_and_gradients(lambda x, k: layers.convolve_native(x, k)[first], x, kernel),
                   1e-4)
  assert set(convolution_ranks(strided, x, kernel)) == {4}  # no 3-D convolution on CPU


@pytest.mark.parametrize("shape, strides", [((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 2))])
def test_average_pooling_is_the_mean_of_blocks(shape, strides):
  x = normal(0, 2, *shape, 3)
  window = (1, *strides, 1)
  sums = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID")
  np.testing.assert_allclose(layers.average_pool(x, strides), sums / float(np.prod(strides)),
                             atol=1e-6)


@pytest.mark.parametrize("shape, strides", [
    ((8, 6), (2, 2)), ((4, 6, 8), (2, 2, 2)), ((3, 6, 4), (1, 3, 2))])
def test_pooling_is_the_windowed_maximum(shape, strides):
  x = normal(0, 2, *shape, 3)
  assert_all_close(value_and_gradients(lambda x: layers.max_pool(x, strides), x),
                   value_and_gradients(lambda x: nn.max_pool(x, strides, strides), x), 0)


def test_the_gradient_of_a_tie_goes_to_one_of_the_equals():
  x = jnp.zeros((1, 4, 6, 1))
  gradient = jax.grad(lambda x: layers.max_pool(x, (2, 3)).sum())(x)
  blocks = gradient.reshape(2, 2, 2, 3).transpose(0, 2, 1, 3).reshape(4, 6)
  np.testing.assert_array_equal(np.sort(np.asarray(blocks), axis=1), [[0, 0, 0, 0, 0, 1]] * 4)


@pytest.mark.parametrize("shape, strides", [((3, 4), (2, 2)), ((2, 3, 4), (2, 2, 2)),
                                            ((2, 3, 2), (1, 2, 3))])
def test_upsampling_is_the_transposed_convolution(shape, strides):
  x, layer = normal(0, 2, *shape, 5), layers.Upsample(3, strides)
  axes = "DHW"[3 - len(shape):]
  names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  kernel = normal(1, 5, *strides, 3)

  def oracle(x, kernel):
    return lax.conv_transpose(x, jnp.moveaxis(kernel, 0, -1), strides, "VALID",
                              dimension_numbers=names, transpose_kernel=True)

  def ours(x, kernel):
    return layer.apply({"params": {"kernel": kernel}}, x)

  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  assert shapes["params"]["kernel"].shape == kernel.shape
  assert_all_close(value_and_gradients(ours, x, kernel), value_and_gradients(oracle, x, kernel),
                   1e-5)


@pytest.mark.parametrize("ndim, bias", [(2, True), (3, False)])
def test_a_shared_input_counts_as_concatenated(ndim, bias):
  kernel_size, shape = (3,) * ndim, (4, 5, 3)[:ndim]
  layer = layers.Conv(4, kernel_size, use_bias=bias)
  x, shared = normal(0, 2, *shape, 3), normal(1, 2, *shape, 2)
  params = {"kernel": normal(2, *kernel_size, 5, 4)} | ({"bias": normal(3, 4)} if bias else {})
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x, shared)["params"]
  assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in params.items()}

  def apart(params, x, shared):
    return layer.apply({"params": params}, x, shared)

  def joined(params, x, shared):
    return layer.apply({"params": params}, jnp.concatenate([x, shared], -1))

  assert_all_close(*(jax.tree.leaves(value_and_gradients(f, params, x, shared))
                     for f in (apart, joined)), 1e-4)


def test_a_shared_input_is_convolved_once_for_all_classes():
  """Under a vmap over the first input, the convolution of the shared input keeps its shape."""
  layer, shared = layers.Conv(4, (3, 3)), normal(1, 2, 4, 5, 2)
  params = {"params": {"kernel": normal(2, 3, 3, 5, 4)}}

  def volumes(classes):
    x = normal(0, classes, 2, 4, 5, 3)
    call = jax.vmap(lambda x: layer.apply(params, x, shared))
    eqns = jax.make_jaxpr(call)(x).jaxpr.eqns
    return [e.invars[0].aval.size // e.invars[0].aval.shape[-1] for e in eqns
            if e.primitive.name == "conv_general_dilated"]

  assert volumes(7) == [7 * 2 * 4 * 5, 2 * 4 * 5]


@pytest.mark.parametrize("kind", layers.NORMS)
def test_normalisation_is_independent_of_other_samples(kind):
  x = normal(0, 3, 4, 5, 8)
  variables = layers.Norm(kind).init(jax.random.key(0), x)
  together = layers.Norm(kind).apply(variables, x.at[1:].mul(100.0))
  alone = layers.Norm(kind).apply(variables, x[:1])
  np.testing.assert_allclose(together[:1], alone, atol=1e-6)


@pytest.mark.parametrize("kind, channels, size", [
    ("instance", 4, 1), ("group", 16, 8), ("group", 12, 4)])
def test_a_group_has_mean_0_and_variance_1(kind, channels, size):
  x = 3 * normal(0, 2, 4, 5, 6, channels) + 2
  norm = layers.Norm(kind)
  y = norm.apply(norm.init(jax.random.key(0), x), x)
  groups = np.asarray(y).reshape(2, 4, 5, 6, channels // size, size)
  np.testing.assert_allclose(groups.mean((1, 2, 3, 5)), 0, atol=1e-5)
  np.testing.assert_allclose(groups.var((1, 2, 3, 5)), 1, atol=1e-3)


def test_no_normalisation_is_the_identity():
  x = normal(0, 2, 4, 4, 8)
  variables = layers.Norm("none").init(jax.random.key(0), x)
  assert not variables
  np.testing.assert_array_equal(layers.Norm("none").apply(variables, x), x)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
  x = (normal(0, 1, 16, 16, 8) + 30).astype(jnp.bfloat16)
  for layer in (layers.Conv(4, (3, 3), use_bias=True, dtype=jnp.bfloat16),
                layers.Upsample(4, (2, 2), dtype=jnp.bfloat16),
                layers.Norm("group", dtype=jnp.bfloat16)):
    y, variables = jax.eval_shape(lambda x, m=layer: m.init_with_output(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
  # Squares of values near 30, summed in bfloat16, would lose a variance of 1 completely.
  norm = layers.Norm("group", dtype=jnp.bfloat16)
  y = norm.apply(norm.init(jax.random.key(0), x), x).astype(jnp.float32)
  np.testing.assert_allclose(np.var(np.asarray(y)), 1, atol=0.02)


@pytest.mark.parametrize("name", list(layers.ACTIVATIONS))
def test_activations_keep_the_positive_side(name):
  y = layers.ACTIVATIONS[name](jnp.array([-3.0, 0.0, 20.0]))
  np.testing.assert_allclose(y[1:], [0, 20], atol=1e-4)
  assert abs(float(y[0])) < 0.2
