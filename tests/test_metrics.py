"""Overlap, surface distance and size: closed forms, the absent-class rule, unlabelled voxels."""

import tracemalloc

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
from scipy import ndimage

from condseg_jax import metrics

UNLABELLED = 255
examples = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


def box(shape, start, stop):
  mask = np.zeros(shape, bool)
  mask[tuple(map(slice, start, stop))] = True
  return mask


def truth_of(mask):
  return mask.astype(np.uint8)


@st.composite
def three_valued_cases(draw, ndim=None):
  shape = draw(hnp.array_shapes(min_dims=ndim or 2, max_dims=ndim or 3, min_side=1, max_side=6))
  prediction = draw(hnp.arrays(bool, shape))
  truth = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, UNLABELLED])))
  spacing = tuple(draw(st.sampled_from([0.5, 1.0, 2.5])) for _ in shape)
  return prediction, truth, spacing


# Closed forms

@pytest.mark.parametrize("shape", [(12, 10), (6, 12, 10)])
def test_overlap_of_two_boxes(shape):
  n = len(shape)
  a, b = box(shape, (1,) * n, (5,) * n), box(shape, (2,) * n, (6,) * n)
  size, common = 4 ** n, 3 ** n
  assert metrics.dice(a, truth_of(b)) == 2 * common / (size + size)
  assert metrics.iou(a, truth_of(b)) == common / (size + size - common)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_distance_of_shifted_boxes_is_steps_times_spacing(axis, steps):
  # Thin plates perpendicular to the shift: every surface voxel is exactly that far away.
  shape, spacing = (12, 12, 12), (5.0, 0.7, 1.3)
  start, stop = np.array([2, 2, 2]), np.array([9, 9, 9])
  stop[axis] = start[axis] + 1
  shift = np.eye(3, dtype=int)[axis] * steps
  a, b = box(shape, start, stop), box(shape, start + shift, stop + shift)
  distance = steps * spacing[axis]
  assert metrics.hd95(a, truth_of(b), spacing) == pytest.approx(distance, rel=1e-12)
  assert metrics.surface_dice(a, truth_of(b), spacing, distance) == 1
  assert metrics.surface_dice(a, truth_of(b), spacing, distance * 0.99) == 0


def test_hd95_is_the_larger_directed_percentile():
  # From the single true pixel to the bar it is 0; back, the distances are 0, 2, …, 2 (n - 1).
  n, spacing = 21, (1.0, 2.0)
  bar, dot = box((5, 30), (2, 3), (3, 3 + n)), box((5, 30), (2, 3), (3, 4))
  expected = 0.95 * (n - 1) * spacing[1]
  assert metrics.hd95(bar, truth_of(dot), spacing) == pytest.approx(expected)
  assert metrics.hd95(dot, truth_of(bar), spacing) == pytest.approx(expected)


def test_surface_dice_counts_both_surfaces():
  bar, dot = box((5, 30), (2, 3), (3, 13)), box((5, 30), (2, 3), (3, 4))
  near = 3  # voxels of the bar at most 2 from the dot
  assert metrics.surface_dice(bar, truth_of(dot), (1, 1), 2) == (near + 1) / (10 + 1)


def test_tolerance_survives_rounding():
  # Three steps of 0.1 mm are 0.30000000000000004 mm.
  a, b = box((3, 9), (1, 1), (2, 2)), box((3, 9), (1, 4), (2, 5))
  assert metrics.surface_dice(a, truth_of(b), (0.1, 0.1), 0.3) == 1


def test_volume_is_in_ml_and_area_in_pixels():
  a, b = box((8, 8, 8), (1, 1, 1), (5, 5, 5)), box((8, 8, 8), (1, 1, 1), (5, 5, 3))
  spacing = (3.0, 0.5, 0.8)
  scores = metrics.score_case(a, truth_of(b), spacing, 1.0)
  ml = 3.0 * 0.5 * 0.8 / 1000
  assert scores["volume_ml"] == pytest.approx(4 ** 3 * ml)
  assert scores["truth_volume_ml"] == pytest.approx(4 * 4 * 2 * ml)
  assert scores["volume_error_ml"] == pytest.approx((4 ** 3 - 4 * 4 * 2) * ml)
  assert scores["volume_error_relative"] == pytest.approx(1)
  flat = metrics.score_case(a[2], truth_of(b[2]), spacing[1:], 1.0)
  assert (flat["area_px"], flat["truth_area_px"], flat["area_error_px"]) == (16, 8, 8)
  assert not any(key.endswith("_ml") for key in flat)


@examples
@hypothesis.given(three_valued_cases())
def test_surface_scores_match_a_distance_transform(case):
  # The textbook way, with surfaces by erosion, where everything is labelled.
  prediction, truth, spacing = case
  truth = (truth == 1).astype(np.uint8)
  hypothesis.assume(min(truth.shape) > 1 and prediction.any() and truth.any())
  s, t = (m & ~ndimage.binary_erosion(m) for m in (prediction, truth == 1))
  to_truth = ndimage.distance_transform_edt(~t, sampling=spacing)[s]
  to_prediction = ndimage.distance_transform_edt(~s, sampling=spacing)[t]
  expected = max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))
  assert metrics.hd95(prediction, truth, spacing) == pytest.approx(expected)
  within = (to_truth <= 1.25).sum() + (to_prediction <= 1.25).sum()
  assert metrics.surface_dice(prediction, truth, spacing, 1.25) == pytest.approx(
      within / (len(to_truth) + len(to_prediction)))


# Invariances

@examples
@hypothesis.given(three_valued_cases())
def test_symmetric(case):
  prediction, truth, spacing = case
  swapped = np.where(truth == UNLABELLED, truth, prediction.astype(np.uint8))
  a = metrics.score_case(prediction, truth, spacing, 1.0)
  b = metrics.score_case(truth == 1, swapped, spacing, 1.0)
  for key in ("dice", "iou", "hd95", "surface_dice"):
    assert a[key] == pytest.approx(b[key], nan_ok=True), key


@examples
@hypothesis.given(three_valued_cases(), st.booleans())
def test_prediction_on_unlabelled_voxels_changes_nothing(case, value):
  prediction, truth, spacing = case
  changed = np.where(truth == UNLABELLED, value, prediction)
  a = metrics.score_case(prediction, truth, spacing, 1.0)
  b = metrics.score_case(changed, truth, spacing, 1.0)
  np.testing.assert_equal(a, b)


def test_unlabelled_voxels_make_no_surface():
  # The same cube on both sides, its lower half unlabelled. A surface at the cut would be one more
  # place where both agree, and hide that the only labelled face lies two voxels off.
  shape = (12, 8, 8)
  truth = truth_of(box(shape, (0, 0, 0), (8, 8, 8)))
  prediction = box(shape, (0, 0, 0), (10, 8, 8))
  truth[:5] = UNLABELLED
  sides = ~box((8, 8), (1, 1), (7, 7))  # the array ends there, for both
  top_only, n = 36, sides.sum()
  exact = n * 3 + n * 3  # rows 5, 6 and 7 of the sides are common
  total = (n * 3 + top_only) + (n * 5 + top_only)
  assert metrics.surface_dice(prediction, truth, (1, 1, 1), 0) == exact / total


def test_structure_walled_in_by_unlabelled_voxels_has_no_distance():
  truth = np.full((7, 7), UNLABELLED, np.uint8)
  truth[2:5, 2:5] = 1
  truth[0] = 0
  prediction = truth == 1
  scores = metrics.score_case(prediction, truth, (1, 1), 1.0)
  assert scores["dice"] == 1
  assert np.isnan(scores["hd95"]) and np.isnan(scores["surface_dice"])


@examples
@hypothesis.given(three_valued_cases(ndim=2))
def test_a_volume_of_one_slice_scores_like_the_image(case):
  prediction, truth, spacing = case
  flat = metrics.score_case(prediction, truth, spacing, 1.0)
  for axis in range(3):
    deep = metrics.score_case(np.expand_dims(prediction, axis), np.expand_dims(truth, axis),
                              np.insert(np.array(spacing), axis, 7.0), 1.0)
    for key in ("dice", "iou", "tp", "fp", "fn", "hd95", "surface_dice"):
      if key in ("hd95", "surface_dice") and 1 in truth.shape:
        continue  # which of two short axes has an extent is then a different question
      assert deep[key] == pytest.approx(flat[key], nan_ok=True), (key, axis)


@examples
@hypothesis.given(three_valued_cases())
def test_padding_away_from_the_border_changes_overlap_and_size_not(case):
  prediction, truth, spacing = case
  a = metrics.score_case(prediction, truth, spacing, fast=True)
  b = metrics.score_case(np.pad(prediction, 2), np.pad(truth, 2, constant_values=UNLABELLED),
                         spacing, fast=True)
  b["n_unlabelled"] -= np.pad(truth, 2).size - truth.size
  if (truth != UNLABELLED).any():
    np.testing.assert_equal(a, b)


@pytest.mark.parametrize("ndim", [2, 3])
def test_structure_at_the_border_has_a_size_and_a_surface(ndim):
  # The whole array belongs to the structure, which then has no neighbour outside itself.
  full = np.ones((4,) * ndim, bool)
  scores = metrics.score_case(full, truth_of(full), (1.0,) * ndim, 0.0)
  assert (scores["volume_ml"] * 1000 if ndim == 3 else scores["area_px"]) == 4 ** ndim
  assert scores["hd95"] == 0 and scores["surface_dice"] == 1
  corner = box((4,) * ndim, (0,) * ndim, (2,) * ndim)
  near = metrics.score_case(corner, truth_of(full), (1.0,) * ndim, 0.0)
  assert near["hd95"] > 0 and 0 < near["surface_dice"] < 1


# The absent-class rule

def test_absent_rule_table():
  both_empty, missed, invented = (metrics.absent_rule(*n) for n in ((0, 0), (0, 3), (3, 0)))
  assert all(np.isnan(value) for value in both_empty.values())
  for scores in (missed, invented):
    assert scores["dice"] == scores["iou"] == scores["surface_dice"] == 0
    assert np.isnan(scores["hd95"])
  assert metrics.absent_rule(3, 3) is None


def test_both_empty_is_left_out():
  empty = np.zeros((4, 4, 4), bool)
  scores = metrics.score_case(empty, truth_of(empty), (1, 1, 1), 1.0)
  for key in ("dice", "iou", "hd95", "surface_dice", "volume_error_ml", "volume_error_relative"):
    assert np.isnan(scores[key]), key
  assert scores["volume_ml"] == scores["truth_volume_ml"] == scores["false_positive_ml"] == 0


def test_invented_structure_reports_its_volume():
  prediction = box((4, 4, 4), (0, 0, 0), (2, 2, 2))
  scores = metrics.score_case(prediction, np.zeros((4, 4, 4), np.uint8), (2, 2, 2), 1.0)
  assert scores["dice"] == scores["iou"] == scores["surface_dice"] == 0
  assert np.isnan(scores["hd95"]) and np.isnan(scores["volume_error_relative"])
  assert scores["false_positive_ml"] == scores["volume_error_ml"] == 2 ** 3 * 2 ** 3 / 1000


def test_missed_structure_has_no_distance():
  truth = truth_of(box((4, 4, 4), (0, 0, 0), (2, 2, 2)))
  scores = metrics.score_case(np.zeros((4, 4, 4), bool), truth, (1, 1, 1), 1.0)
  assert scores["dice"] == 0 and scores["volume_error_relative"] == -1
  assert np.isnan(scores["hd95"]) and np.isnan(scores["false_positive_ml"])


def test_case_without_labels_measures_nothing():
  truth = np.full((3, 3, 3), UNLABELLED, np.uint8)
  scores = metrics.score_case(np.ones((3, 3, 3), bool), truth, (1, 1, 1), 1.0)
  counts = {key: scores.pop(key) for key in ("tp", "fp", "fn", "n_unlabelled")}
  assert all(np.isnan(value) for value in scores.values())
  assert counts == {"tp": 0, "fp": 0, "fn": 0, "n_unlabelled": 27}


# The interface

@examples
@hypothesis.given(three_valued_cases())
def test_fast_scores_are_the_same_scores(case):
  full = metrics.score_case(*case, 1.0)
  assert {type(value) for value in full.values()} == {float}
  fast = metrics.score_case(*case, fast=True)
  assert set(full) - set(fast) == {"hd95", "surface_dice"}
  np.testing.assert_equal(fast, {key: full[key] for key in fast})
  single = {"dice": metrics.dice(*case[:2]), "iou": metrics.iou(*case[:2]),
            "hd95": metrics.hd95(*case), "surface_dice": metrics.surface_dice(*case, 1.0)}
  np.testing.assert_equal(single, {key: full[key] for key in single})


def test_no_spacing_is_assumed():
  a = box((6, 6), (1, 1), (3, 3))
  with pytest.raises(TypeError):
    metrics.hd95(a, truth_of(a))
  with pytest.raises(TypeError):
    metrics.score_case(a, truth_of(a))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1,), (1, 0), (1, -1), (1, np.nan)])
def test_spacing_that_does_not_fit_is_refused(spacing):
  a = box((6, 6), (1, 1), (3, 3))
  with pytest.raises(ValueError, match="spacing"):
    metrics.score_case(a, truth_of(a), spacing, 1.0)


def test_masks_that_do_not_fit_are_refused():
  a = box((6, 6), (1, 1), (3, 3))
  with pytest.raises(ValueError, match="boolean"):
    metrics.dice(a.astype(np.float32), truth_of(a))
  with pytest.raises(ValueError, match="shape"):
    metrics.dice(a, truth_of(a)[:5])
  with pytest.raises(ValueError, match="0, 1 and 255"):
    metrics.dice(a, truth_of(a) * 2)
  with pytest.raises(ValueError, match="2-D or 3-D"):
    metrics.dice(a[None, None], truth_of(a)[None, None])
  with pytest.raises(ValueError, match="tolerance"):
    metrics.score_case(a, truth_of(a), (1, 1))
  with pytest.raises(ValueError, match="tolerance"):
    metrics.score_case(a, truth_of(a), (1, 1), -1.0)


def test_a_false_voxel_far_away_costs_little():
  # A distance transform of the joint bounding box needs 20 bytes per voxel, and seconds.
  shape = (60, 200, 200)
  truth = box(shape, (2, 2, 2), (20, 20, 20))
  prediction = truth.copy()
  prediction[-1, -1, -1] = True
  tracemalloc.start()
  try:
    scores = metrics.score_case(prediction, truth_of(truth), (2.5, 0.8, 0.8), 1.0)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 10 * truth.size
  assert scores["hd95"] == 0 and 0.99 < scores["surface_dice"] < 1


# --- a metric of one's own ----------------------------------------------------------------------
def test_a_metric_of_ones_own_is_scored_and_summarised(monkeypatch):
  """One function and its name: with the absent rule, in every summary, where it is fast too."""
  def precision(prediction, truth, spacing):
    return np.count_nonzero(prediction & (truth == 1)) / np.count_nonzero(prediction)

  def centre_mm(prediction, truth, spacing):
    centres = [np.argwhere(mask).mean(0) * spacing for mask in (prediction, truth == 1)]
    return np.linalg.norm(centres[0] - centres[1])

  monkeypatch.setitem(metrics.METRICS, "precision", metrics.Metric("precision", fast=True,
                                                                   measure=precision))
  monkeypatch.setitem(metrics.METRICS, "centre_mm", metrics.Metric(
      "centre distance", higher_is_better=False, unit="mm", measure=centre_mm))
  truth = np.zeros((4, 4, 4), np.uint8)
  truth[1, 1, 1:3] = 1
  prediction = np.zeros(truth.shape, bool)
  prediction[1, 1, 1:5] = True
  spacing = (1.0, 1.0, 2.0)
  scores = metrics.score_case(prediction, truth, spacing, 1.0)
  assert scores["precision"] == pytest.approx(2 / 3) and scores["centre_mm"] == pytest.approx(1.0)
  fast = metrics.score_case(prediction, truth, spacing, fast=True)
  assert fast["precision"] == scores["precision"] and "centre_mm" not in fast
  nothing, empty = np.zeros_like(prediction), np.zeros_like(truth)
  for p, t, expected in ((nothing, truth, (0.0, np.nan)), (prediction, empty, (0.0, np.nan)),
                         (nothing, empty, (np.nan, np.nan))):
    absent = metrics.score_case(p, t, spacing, 1.0)
    np.testing.assert_equal((absent["precision"], absent["centre_mm"]), expected)
