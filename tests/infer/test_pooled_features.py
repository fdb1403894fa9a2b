"""Pooled features: means of the coarsest level, over all of the image."""

import numpy as np
import pytest

from condseg_jax.infer.pooled_features import pooled_features
from condseg_jax.infer.sliding_window import WindowFunctions

WINDOW = (4, 6)


def functions(*, sees_class=False):
  """Skips of the image, and a coarse level: its blocks of two pixels and their squares."""
  def encode(variables, image, ids):
    assert image.shape == (1, *WINDOW, 2) and image.dtype == np.float32 and ids.shape == (3,)
    blocks = image.reshape(1, 2, 2, 3, 2, 2).mean((2, 4))
    coarse = np.concatenate([blocks, variables * blocks], -1)
    if sees_class:
      return {"skip": image[None], "coarse": np.stack([coarse * (i + 1) for i in ids])}
    return {"skip": image, "coarse": coarse}
  return WindowFunctions(encode, lambda *_: None, sees_class, (16, 3))


@pytest.mark.parametrize("sees_class", [False, True])
def test_the_mean_of_the_image_where_windows_fit(sees_class):
  image = np.random.default_rng(0).normal(size=(8, 18, 2)).astype(np.float32)
  found = pooled_features(functions(sees_class=sees_class), 3, image, WINDOW, 0)
  mean = image.mean((0, 1))
  np.testing.assert_allclose(found, [*mean, *(3 * mean)], atol=1e-6)


def test_a_small_image_is_padded_with_its_border():
  image = np.full((2, 3, 2), 0.5, np.float32)
  np.testing.assert_allclose(pooled_features(functions(), 2, image, WINDOW, 0), [0.5, 0.5, 1, 1])
