"""Deep supervision: auxiliary heads in training, and no effect on predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import class_logits
from condseg_jax.models.network import level_logits

NET = dict(codes=(0.7, -0.5), strides=((1, 2), (2, 2), (2, 2)), layers_per_level=(1, 1, 1, 1),
           channels=4, growth=4)
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 16, 1)), jnp.float32)
IDS = jnp.array([[0, 1, 1], [1, 0, 0]], jnp.int32)


def initial(model):
  return jax.jit(model.init)(jax.random.key(0), IMAGE, IDS[:, 0])


@pytest.mark.slow
def test_auxiliary_heads_exist_only_with_deep_supervision():
  off, on = initial(DenseUNet(**NET)), initial(DenseUNet(**NET, deep_supervision=2))
  assert set(on["params"]) - set(off["params"]) == {"coarse_heads_0", "coarse_heads_1"}
  for name, value in off["params"].items():
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(on["params"][name]), strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_predictions_are_the_same_without_it():
  off, on = DenseUNet(**NET), DenseUNet(**NET, deep_supervision=2)
  variables = initial(on)
  np.testing.assert_array_equal(
      class_logits(on, variables, IMAGE, IDS), class_logits(off, variables, IMAGE, IDS))
  levels = level_logits(on, variables, IMAGE, IDS)
  assert [x.shape for x in levels] == [(2, 8, 16, 3), (2, 8, 8, 3), (2, 4, 4, 3)]
  # The compiler removes the auxiliary heads.
  shapes = jax.eval_shape(lambda: variables)
  flops = [jax.jit(functools.partial(class_logits, m)).lower(shapes, IMAGE, IDS).compile()
           .cost_analysis()["flops"] for m in (off, on)]
  assert flops[0] == flops[1]


@pytest.mark.parametrize("settings, most", [
    ({}, 2), ({"from_level": 1}, 1), ({"from_level": 0}, 0), ({"position": "encoder"}, 2),
    ({"position": "output_head", "mechanism": "dynamic"}, 0)])
def test_only_levels_that_see_the_class_have_a_head(settings, most):
  DenseUNet(**NET, **settings, deep_supervision=most).check()
  for wrong in (most + 1, -1):
    with pytest.raises(ValueError, match=f"choose 0 to {most}"):
      DenseUNet(**NET, **settings, deep_supervision=wrong).check()
