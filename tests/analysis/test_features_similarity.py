"""Centred kernel alignment and the share of variance explained by the class."""

import numpy as np
import pytest

from condseg_jax.analysis.features import class_share
from condseg_jax.analysis.features import linear_cka


def features(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def test_cka_is_invariant_to_rotation_scaling_and_shift():
  x = features(50, 4)
  rotation, _ = np.linalg.qr(features(4, 4, seed=1))
  assert linear_cka(x, x) == pytest.approx(1)
  assert linear_cka(x, -3 * x @ rotation + 7) == pytest.approx(1)


def test_other_linear_maps_reduce_the_similarity():
  x = features(50, 4)
  assert linear_cka(x, x * np.array([1, 1, 1, 9])) < 0.8


def test_cka_of_single_channels_is_the_squared_correlation():
  x, y = features(50, 1), features(50, 1, seed=1) + 0.7 * features(50, 1)
  assert linear_cka(x, y) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2)
  assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))


def test_cka_of_uncorrelated_features_is_zero():
  # Columns of an orthogonal matrix whose first is constant: the others are centred.
  basis, _ = np.linalg.qr(np.column_stack([np.ones(8), features(8, 5)]))
  assert linear_cka(basis[:, 1:3], basis[:, 3:6]) == pytest.approx(0, abs=1e-12)


def test_features_that_do_not_vary_have_no_value():
  constant = np.full((9, 2), 0.1)
  assert linear_cka(constant, features(9, 2)) is None
  assert linear_cka(features(9, 2), constant) is None
  assert class_share(np.full((2, 9, 3), 0.1)) is None


def test_share_of_a_sum_of_voxel_and_class():
  voxel, of_class = features(1, 60, 3), features(4, 1, 3, seed=1)
  between = of_class.var(0).sum()
  expected = between / (between + voxel.var(1).sum())
  assert class_share(voxel + of_class) == pytest.approx(expected)


def test_share_is_0_without_an_effect_of_the_class_and_1_without_any_other():
  assert class_share(np.repeat(features(1, 60, 3), 3, axis=0)) == pytest.approx(0)
  assert class_share(np.repeat(features(3, 1, 2), 60, axis=1)) == pytest.approx(1)
