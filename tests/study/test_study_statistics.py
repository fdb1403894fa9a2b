"""The statistics of studies, against closed forms."""

import math

import numpy as np
import pytest

from condseg_jax import metrics
from condseg_jax.evaluate.bootstrap import interval
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.evaluate.scores import summarise
from condseg_jax.study import statistics
from support.made_records import record

RNG = np.random.default_rng(0)


def group(label, scores_SCK):
  scores = np.asarray(scores_SCK, float)
  valid = ~np.isnan(scores)
  return statistics.Group(label, np.where(valid, scores, 0), valid.astype(float))


@pytest.mark.parametrize("shape", [(6, 7, 5), (14, 13)])
def test_scores_of_a_row_are_those_of_evaluate(shape):
  """With an absent class, void voxels, and, in 2-D, pooled IoU."""
  rng, rows, measured = np.random.default_rng(1), [], []
  for c in range(4):
    line = []
    for name in ("x", "y"):
      truth = rng.integers(0, 2, shape).astype(np.uint8)
      truth[rng.random(shape) < 0.1] = 255
      prediction = rng.random(shape) < 0.4
      if c == 1 and name == "y":
        truth[:], prediction[:] = 0, False
      line.append(metrics.score_case(prediction, truth, (1.0,) * len(shape), fast=True))
      rows.append(CaseScore(f"c{c}", name, line[-1]))
    measured.append(line)
  arrays = {key: np.array([[m[key] for m in line] for line in measured])
            for key in ("dice", "iou", "tp", "fp", "fn")}
  made = record("v", 0, arrays["dice"], axes=len(shape), classes=("x", "y"),
                counts=[arrays[key] for key in ("tp", "fp", "fn")])
  found, summary = statistics.row_scores(made), summarise(rows, ("x", "y"))
  classes = summary["classes"]
  assert found["mean_dice"] == pytest.approx(summary["mean_dice"])
  if len(shape) == 3:
    expected = [classes[n]["dice"]["mean"] for n in ("x", "y")]
    assert found["mean_iou"] == pytest.approx(summary["mean_iou"])
  else:
    expected = [classes[n]["pooled_iou"] for n in ("x", "y")]
    assert found["mean_iou"] == pytest.approx(summary["mean_pooled_iou"])
  assert found["classes"] == pytest.approx(expected)


def test_means_and_deviations_over_seeds():
  scores = RNG.random((3, 5, 2))
  mean, sd = statistics.means(group("v", scores))
  per_seed = np.c_[scores.mean(1), scores.mean((1, 2))]
  np.testing.assert_allclose(mean, per_seed.mean(0))
  np.testing.assert_allclose(sd, np.sqrt(((per_seed - per_seed.mean(0)) ** 2).sum(0) / 2))
  assert np.isnan(statistics.means(group("v", scores[:1]))[1]).all()


def test_replicates_of_one_seed_are_those_of_a_mean_over_cases():
  """Their mean is the mean, their variance Σ (x - mean)² / n², within what 20 000 draws allow."""
  x = RNG.random((1, 12, 1))
  drawn = statistics.replicates([group("v", x)], resamples=20_000)[0, :, 0]
  variance = x.var() / 12
  assert drawn.mean() == pytest.approx(x.mean(), abs=4 * math.sqrt(variance / 20_000))
  assert drawn.var() == pytest.approx(variance, rel=0.05)


def test_seeds_are_resampled_within_cases():
  """No case differs from another: the variance is that of a mean of S resampled seeds."""
  levels = np.array([0.2, 0.5, 0.9])
  drawn = statistics.replicates([group("v", np.tile(levels[:, None, None], (1, 8, 1)))],
                                resamples=20_000)[0, :, 0]
  assert drawn.mean() == pytest.approx(levels.mean(), abs=0.01)
  assert drawn.var() == pytest.approx(levels.var() / 3, rel=0.05)
  assert set(np.round(drawn, 9)) == {round(float(sum(t)) / 3, 9) for t in
                                     [(a, b, c) for a in levels for b in levels for c in levels]}


def test_differences_are_paired():
  """A constant difference has no spread, however much cases differ; of itself it is 0."""
  x = RNG.random((1, 10, 2)) / 2
  found = [group("a", x), group("b", x + 0.125)]
  drawn, points = statistics.replicates(found, resamples=500), [statistics.means(g)[0]
                                                                for g in found]
  for d in statistics.differences(points[1], drawn[1], points[0], drawn[0]):
    assert (d.value, d.low, d.high) == pytest.approx((0.125,) * 3)
    assert d.positive == 1
  for d in statistics.differences(points[0], drawn[0], points[0], drawn[0]):
    assert tuple(d) == (0, 0, 0, 0.5)


def test_pooled_scores_weigh_cases_by_their_size():
  """Intersections over unions of sums; the replicates of two cases take 3 values."""
  counts = [np.array(v, float) for v in ([[9], [1]], [[0], [4]], [[1], [5]])]
  rows = [record("v", 0, [[0.9], [0.2]], axes=2, counts=counts, classes=("x",))]
  found, = statistics.groups(rows)
  assert statistics.means(found)[0][0] == pytest.approx(10 / 20)
  drawn = statistics.replicates([found], resamples=400)[0, :, 0]
  assert set(np.round(drawn, 9)) == {0.9, 0.5, 0.1}
  assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.1)


def test_a_case_without_a_score_counts_for_nothing():
  scores = np.array([[[0.5, np.nan], [0.7, np.nan], [np.nan, np.nan]]])
  mean, _ = statistics.means(group("v", scores))
  np.testing.assert_allclose(mean, [0.6, np.nan, 0.6])
  drawn = statistics.replicates([group("v", scores)], resamples=300)[0]
  assert np.isnan(drawn[:, 1]).all() and np.nanmin(drawn[:, 0]) == pytest.approx(0.5)
  assert np.isnan(interval(drawn[:, 1])).all()


def test_rank_probabilities():
  """Always first, always last; two that are equal share the ranks between; rows and columns sum
  to 1. Of two independent and alike ones each is first in half of the draws."""
  b = RNG.random(4000)
  shares = statistics.rank_probabilities(np.stack([b, b + 1, b, b - 1]))
  np.testing.assert_allclose(shares, [[0, .5, .5, 0], [1, 0, 0, 0], [0, .5, .5, 0], [0, 0, 0, 1]])
  shares = statistics.rank_probabilities(RNG.random((3, 4000)))
  np.testing.assert_allclose(shares.sum(0), 1)
  np.testing.assert_allclose(shares.sum(1), 1)
  np.testing.assert_allclose(shares, 1 / 3, atol=0.04)


def test_records_of_other_cases_are_not_compared():
  rows = [record("a", 0, [[0.5, 0.5]]), record("b", 0, [[0.5, 0.5], [0.5, 0.5]])]
  with pytest.raises(ValueError, match="other cases"):
    statistics.groups(rows)
