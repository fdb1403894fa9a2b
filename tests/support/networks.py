"""Small networks with parameters that are nowhere 0 or 1, as trained ones are."""

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models.dense_unet import DenseUNet

CODES = (-0.7, 0.1, 0.4, 0.9, -0.2)


def network(window=(8, 8, 4), image_channels=1, **changes):
  """A network for windows of a shape, and its parameters."""
  settings = dict(codes=CODES, strides=((2,) * len(window), (2,) * (len(window) - 1) + (1,)),
                  layers_per_level=(1, 2, 1), channels=8, growth=8)
  model = DenseUNet(**{**settings, **changes})
  image = jnp.zeros((1, *window, image_channels))
  params = jax.jit(model.init)(jax.random.key(0), image, jnp.zeros(1, jnp.int32))["params"]
  rng = np.random.default_rng(1)
  return model, jax.tree.map(
      lambda x: x + np.asarray(rng.normal(0, 0.1, x.shape), np.float32), params)
