"""Initial parameters are those of `model.init`, bit for bit, however little they are optimised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.initial import initial_variables

MODEL = DenseUNet(codes=(-0.7, 0.1), strides=((2, 2),), depth=(1, 1), channels=8, growth=8)


@pytest.mark.slow
def test_fewer_compiler_passes_change_no_bit():
  jax.config.update("jax_disable_most_optimizations", False)
  try:
    initial = initial_variables(MODEL, 3, (8, 8, 1))
    expected = jax.jit(MODEL.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 1)),
                                   jnp.zeros(1, jnp.int32))
  finally:
    jax.config.update("jax_disable_most_optimizations", True)
  assert jax.tree.structure(initial) == jax.tree.structure(expected)
  for ours, theirs in zip(jax.tree.leaves(initial), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(ours, theirs)
