"""The memory estimate of a training step against the memory analysis of the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.memory import PEAK
from condseg_jax.models.memory import training_bytes
from condseg_jax.models.res_unet import ResUNet

NETS = {
    "3-D": (DenseUNet((0.1, 0.2), ((2, 2, 2),), (1, 1), channels=8, growth=8), (16, 24, 16), 1),
    "2-D": (DenseUNet((0.1, 0.2), ((2, 2),) * 2, (1, 1, 1)), (64, 96), 3),
    "residual": (ResUNet((0.1, 0.2), ((2, 2, 2),) * 2, (1, 2, 2), channels=8), (16, 24, 16), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_estimate_is_near_what_is_allocated(name):
  model, shape, channels = NETS[name]
  image, ids = jnp.zeros((2, *shape, channels)), jnp.zeros(2, jnp.int32)
  variables = model.init(jax.random.key(0), image, ids)
  step = jax.jit(jax.grad(lambda v: model.apply(v, image, ids).mean()))
  taken = step.lower(variables).compile().memory_analysis().temp_size_in_bytes
  estimate = training_bytes(model, shape, channels, 2)
  assert 0.8 * taken < estimate < 3 * taken


@pytest.mark.parametrize("name", ["3-D", "residual"])
def test_it_grows_with_voxels_batch_and_decodes(name):
  model, shape, channels = NETS[name]
  fixed = training_bytes(model, (0, 24, 16), channels, 1)
  one = training_bytes(model, shape, channels, 1) - fixed
  assert fixed > 0 and one > 0
  assert training_bytes(model, shape, channels, 3) - fixed == pytest.approx(3 * one)
  longer = (3 * shape[0], *shape[1:])
  assert training_bytes(model, longer, channels, 1) - fixed == pytest.approx(3 * one)
  on_gpu = training_bytes(model, shape, channels, 1, platform="gpu") - fixed
  assert on_gpu == pytest.approx(one * PEAK["gpu"] / PEAK["cpu"], rel=1e-3)


def test_an_additional_class_costs_its_decoder_only():
  model, shape, channels = NETS["3-D"]
  one, two, five = (training_bytes(model, shape, channels, 1, n) for n in (1, 2, 5))
  assert 0 < two - one < 0.8 * one
  assert five - one == pytest.approx(4 * (two - one))
  # With cond-2nd, the whole network runs for every class.
  model = model.clone(position="input")
  fixed = training_bytes(model, (0, 24, 16), channels, 1)
  one, two = (training_bytes(model, shape, channels, 1, n) - fixed for n in (1, 2))
  assert two == pytest.approx(2 * one)


def test_gradient_accumulation_reduces_memory():
  model, shape, channels = NETS["3-D"]
  whole, parts, small = (training_bytes(model, shape, channels, batch, accumulate=n)
                         for batch, n in ((4, 1), (4, 2), (2, 1)))
  params = training_bytes(model, (0, 24, 16), channels, 1) // 4
  assert parts == small + params < whole  # the sum of the gradients is one more copy


@pytest.mark.slow
def test_remat_gives_the_same_numbers_and_keeps_less():
  """Compares the residuals of the forward pass, before the compiler optimises them."""
  model, shape, channels = NETS["2-D"]
  again = model.clone(remat=True)
  image = jnp.asarray(np.random.default_rng(0).normal(size=(1, *shape, channels)), jnp.float32)
  ids = jnp.zeros(1, jnp.int32)
  variables = jax.jit(model.init)(jax.random.key(0), image, ids)

  def loss(net):
    return lambda v: (net.apply(v, image, ids) ** 2).mean()

  residuals = [jax.eval_shape(lambda v, net=net: jax.vjp(loss(net), v)[1], variables)
               for net in (model, again)]
  kept = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(r)) for r in residuals]
  assert kept[1] < 0.5 * kept[0]
  plain, same = (jax.jit(jax.value_and_grad(loss(net)))(variables) for net in (model, again))
  assert jax.tree.structure(plain) == jax.tree.structure(same)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)
  on_gpu = [training_bytes(net, shape, channels, 1, platform="gpu") for net in (model, again)]
  on_cpu = [training_bytes(net, shape, channels, 1, platform="cpu") for net in (model, again)]
  assert on_gpu[1] < on_gpu[0] and on_cpu[1] == on_cpu[0]
