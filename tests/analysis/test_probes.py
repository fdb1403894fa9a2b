"""Linear probes recover linear information and nothing else."""

import numpy as np
import pytest

from condseg_jax.analysis import probes


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def test_without_a_penalty_a_linear_map_is_found():
  x, weights = normal(40, 3), normal(3, 2, seed=1)
  model = probes.ridge(x, x @ weights + 5, 0.0)
  new = normal(7, 3, seed=2)
  np.testing.assert_allclose(model(new), new @ weights + 5)


def test_a_penalty_shrinks_the_slope_of_a_standardised_column():
  x = normal(40, 1)
  model = probes.ridge(x, 2 * x, 0.25)
  slope = model(np.ones((1, 1))) - model(np.zeros((1, 1)))
  np.testing.assert_allclose(slope, 2 / 1.25)


def test_a_column_that_does_not_vary_is_left_out():
  x = np.column_stack([normal(40), np.full(40, 0.1)])
  model = probes.ridge(x, x[:, :1], 1e-12)
  np.testing.assert_allclose(model(np.array([[2.0, 99.0]])), [[2.0]])


def test_auc_is_the_part_of_pairs_in_order():
  rng = np.random.default_rng(0)
  score, positive = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
  pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
  assert probes.auc(score, positive) == pytest.approx(np.mean(pairs))
  assert probes.auc(score, np.zeros(40, bool)) is None
  assert probes.auc(score, np.ones(40, bool)) is None


def test_the_threshold_is_the_best_of_all():
  score, positive = normal(60).round(1), normal(60, seed=1) > 0.5  # some are equal
  best = max(probes.dice(score >= t, positive) for t in score)
  assert probes.dice(score >= probes.best_threshold(score, positive), positive) == best


@pytest.mark.parametrize("n", [2, 7, 20])
def test_every_image_is_held_out_once(n):
  held = [set(h.tolist()) for _, h in probes.splits(n, 5)]
  assert sorted(i for part in held for i in part) == list(range(n))
  assert all(not set(fit.tolist()) & set(out.tolist()) for fit, out in probes.splits(n, 5))


@pytest.mark.parametrize("k", [2, 3, 11])
def test_without_an_effect_of_the_class_the_accuracy_is_exactly_chance(k):
  assert probes.class_probe(np.repeat(normal(1, 9, 4), k, axis=0)) == pytest.approx(1 / k)


def test_a_class_that_shifts_the_features_is_recognised():
  pooled = normal(1, 20, 6) + 9 * normal(3, 1, 6, seed=1)
  assert probes.class_probe(pooled) == 1
  assert probes.class_probe(pooled[:, :1]) is None


def test_a_mask_that_is_a_linear_map_of_the_features_is_found():
  mask = (normal(6, 300) > 1).astype(np.uint8)
  features = normal(6, 300, 3, seed=1)
  features[..., 1] = 5 - 0.2 * mask + 0.0 * features[..., 1]
  assert probes.mask_probe(features, mask) == (1, 1)


def test_noise_is_at_chance():
  mask = (normal(6, 2000) > 1).astype(np.uint8)
  score = probes.mask_probe(normal(6, 2000, 3, seed=1), mask)
  assert abs(score.auc - 0.5) < 0.05
  # The best that noise can do is to call all positive: 2 p / (1 + p).
  assert score.dice == pytest.approx(2 * mask.mean() / (1 + mask.mean()), abs=0.05)


def test_unlabelled_voxels_do_not_count():
  mask, features = (normal(4, 100) > 1).astype(np.uint8), normal(4, 100, 3, seed=1)
  mask[:, ::3] = 255
  expected = probes.mask_probe(features, mask)
  features[:, ::3] = 1e6
  assert probes.mask_probe(features, mask) == expected


def test_no_positive_no_score():
  assert probes.mask_probe(normal(4, 100, 3), np.zeros((4, 100), np.uint8)) is None
  one_image = np.zeros((4, 100), np.uint8)
  one_image[2, :9] = 1
  assert probes.mask_probe(normal(4, 100, 3), one_image) is None  # nothing to score on
