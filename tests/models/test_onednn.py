"""oneDNN's convolutions against XLA's own: values, gradients, under vmap; when they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.models import layers
from condseg_jax.models.onednn import build
from condseg_jax.models.onednn import convolution as onednn


@pytest.fixture(scope="module", autouse=True)
def library():
  try:
    build.build()
  except InputError as error:
    pytest.skip(f"oneDNN: {error}")
  assert onednn.load()


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(function, *args):
  def weighted(*args):
    value = function(*args)
    return (value * normal(9, *value.shape)).sum(), value
  return jax.jit(jax.grad(weighted, tuple(range(len(args))), has_aux=True))(*args)


def assert_same(ours, oracle, *args):
  found, expected = value_and_gradients(ours, *args), value_and_gradients(oracle, *args)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("shape, window, channels, features", [
    ((6, 7, 5), (3, 3, 3), 8, 16), ((4, 6, 6), (1, 1, 1), 24, 8), ((1, 5, 4), (3, 3, 3), 1, 3),
    ((5, 4, 6), (5, 1, 3), 3, 2), ((9, 8), (3, 3), 16, 5), ((6, 5), (1, 1), 3, 1)])
def test_it_is_the_native_convolution(shape, window, channels, features):
  assert_same(onednn.convolve, layers.convolve_native,
              normal(0, 2, *shape, channels), normal(1, *window, channels, features))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_it_can_be_vmapped(axes):
  """Over images, over kernels and over both, gradients included."""
  x, kernel = normal(0, 4, 5, 6, 3), normal(1, 3, 3, 3, 2)
  args = [jnp.stack([a, 2 * a, a[::-1]]) if axis == 0 else a
          for a, axis in zip((x, kernel), axes, strict=True)]
  assert_same(jax.vmap(onednn.convolve, axes), jax.vmap(layers.convolve_native, axes), *args)
  outer = [None if axis is None else 1 for axis in axes]
  twice = [a if axis is None else jnp.stack([a, -a], 1)
           for a, axis in zip(args, axes, strict=True)]
  assert_same(jax.vmap(jax.vmap(onednn.convolve, axes), outer),
              jax.vmap(jax.vmap(layers.convolve_native, axes), outer), *twice)


def lowered(*args) -> str:
  jax.clear_caches()  # what was traced under other conditions
  return jax.jit(layers.convolve).lower(*args).as_text()


def test_when_it_is_used(monkeypatch):
  """On one CPU device, in float32, unless it is turned off."""
  x, kernel = normal(0, 1, 4, 4, 4, 2), normal(1, 3, 3, 3, 2, 2)
  assert jax.device_count() == 2 and onednn.TARGETS[0] not in lowered(x, kernel)
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert onednn.TARGETS[0] in lowered(x, kernel)
  half = jnp.bfloat16
  assert onednn.TARGETS[0] not in lowered(x.astype(half), kernel.astype(half))
  monkeypatch.setenv("CONDSEG_ONEDNN", "0")
  assert onednn.TARGETS[0] not in lowered(x, kernel)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(build.shutil, "which", lambda name: None)
  monkeypatch.delenv("CXX", raising=False)
  with pytest.raises(InputError, match="install g"):
    build.build()
  monkeypatch.setenv("CXX", "false")
  with pytest.raises(InputError, match="cannot compile"):
    build.build()
  monkeypatch.setitem(build.PACKAGES, "libdnnl.so", "no-such-package")
  with pytest.raises(InputError, match="no-such-package: is not installed"):
    build.build()
  assert not list(tmp_path.rglob("*.so"))
