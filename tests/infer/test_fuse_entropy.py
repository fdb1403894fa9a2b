"""Entropy against its definition, in closed form and slab by slab."""

import numpy as np
import pytest

from condseg_jax.geometry import Geometry
from condseg_jax.infer.fuse import Entropy
from condseg_jax.infer.prediction import native_map
from condseg_jax.infer.sliding_window import Slab

SHAPE = (4, 3, 2)


def collected(planes, *, exclusive=True):
  """The entropy of [K, *shape] in slabs of one class and two rows each."""
  entropy = Entropy(SHAPE, exclusive=exclusive)
  for k, plane in enumerate(planes):
    for rows in (slice(0, 2), slice(2, 4)):
      entropy(Slab([k], (rows, slice(0, 3), slice(0, 2)), plane[None, rows]))
  return entropy.bits()


def probabilities(classes):
  return np.random.default_rng(classes).uniform(0.001, 0.999, (classes, *SHAPE)).astype(np.float32)


def test_of_exclusive_classes_and_background():
  p = probabilities(3).astype(np.float64)
  odds = np.concatenate([np.ones((1, *SHAPE)), p / (1 - p)])
  q = odds / odds.sum(0)
  np.testing.assert_allclose(collected(probabilities(3)), -(q * np.log2(q)).sum(0), atol=1e-4)


def test_of_overlapping_classes_it_is_the_sum():
  p = probabilities(3).astype(np.float64)
  expected = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum(0)
  np.testing.assert_allclose(collected(probabilities(3), exclusive=False), expected, atol=1e-4)
  one = probabilities(1)
  np.testing.assert_allclose(collected(one), collected(one, exclusive=False), atol=1e-4)


@pytest.mark.parametrize("values, bits", [
    ((0.5,), 1.0), ((0.0,), 0.0), ((1.0,), 0.0), ((1.0, 1.0), 1.0), ((0.5, 0.5), np.log2(3)),
    ((0.0, 0.0), 0.0), ((1.0, 0.0), 0.0)])
def test_certain_and_undecided(values, bits):
  planes = [np.full(SHAPE, value, np.float32) for value in values]
  np.testing.assert_allclose(collected(planes), bits, atol=1e-4)


def test_on_the_grid_of_the_file():
  """Twice as many voxels along each axis, stored upside down: interpolated, then turned."""
  bits = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], SHAPE)
  affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 0, 1]])
  found = native_map(bits, Geometry((8, 6, 4), affine))
  assert found.array.dtype == np.float16
  expected = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)[::-1]
  np.testing.assert_allclose(found.array[:, 2, 1], expected)
  np.testing.assert_array_equal(found.affine, affine)
