"""The estimate of a step's memory against the compiler's own account of it."""

import jax
import jax.numpy as jnp
import pytest

from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.memory import training_bytes

NETS = {
    "3-D": (DenseUNet((0.1, 0.2), ((2, 2, 2),), (1, 1), channels=8, growth=8), (16, 24, 16), 1),
    "2-D": (DenseUNet((0.1, 0.2), ((2, 2),) * 2, (1, 1, 1)), (64, 96), 3),
}


@pytest.mark.parametrize("name", NETS)
def test_the_estimate_is_near_what_is_allocated(name):
  model, shape, channels = NETS[name]
  image, ids = jnp.zeros((2, *shape, channels)), jnp.zeros(2, jnp.int32)
  variables = model.init(jax.random.key(0), image, ids)
  step = jax.jit(jax.grad(lambda v: model.apply(v, image, ids).mean()))
  taken = step.lower(variables).compile().memory_analysis().temp_size_in_bytes
  estimate = training_bytes(model, shape, channels, 2)
  assert 0.8 * taken < estimate < 3 * taken


def test_it_grows_with_voxels_batch_and_decodes():
  model, shape, channels = NETS["3-D"]
  fixed = training_bytes(model, (0, 24, 16), channels, 1)
  one = training_bytes(model, shape, channels, 1) - fixed
  assert fixed > 0 and one > 0
  for changes in ({"batch_size": 3}, {"classes_per_image": 3}):
    arguments = {"batch_size": 1} | changes
    assert training_bytes(model, shape, channels, **arguments) - fixed == pytest.approx(3 * one)
  longer = (3 * shape[0], *shape[1:])
  assert training_bytes(model, longer, channels, 1) - fixed == pytest.approx(3 * one)
  on_gpu = training_bytes(model, shape, channels, 1, platform="gpu") - fixed
  assert on_gpu == pytest.approx(one / 2, rel=1e-3)
