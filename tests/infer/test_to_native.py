"""Resampling to the native grid, compared with interpolating whole volumes."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.infer import to_native
from condseg_jax.resample import resample_to


def literally(label, score, shape, threshold, classes):
  """The equation of the module for whole volumes, and where the result is not a near-tie."""
  shares = np.stack([resample_to(np.where(label == k + 1, score, 0), shape, 1)
                     for k in range(classes)])
  sums = resample_to(score, shape, 1)
  second, first = np.sort(shares, axis=0)[-2:]
  clear = (first - second > 1e-5) & (np.abs(sums - threshold) > 1e-5)
  return np.where(sums >= threshold, shares.argmax(0) + 1, 0), clear


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 3),
       st.integers(0, 10_000))
def test_one_class_and_slab_at_a_time_equals_all_at_once(old, new, seed):
  rng = np.random.default_rng(seed)
  label = rng.integers(1, 4, old).astype(np.uint8)
  score = rng.random(old).astype(np.float32)
  expected, clear = literally(label, score, new, 0.5, 3)
  before = to_native.WORK_VOXELS
  to_native.WORK_VOXELS = 2 * new[1] * new[2]  # slabs of two rows
  try:
    found = to_native.label_map(label.copy(), score.copy(), new, 0.5)
  finally:
    to_native.WORK_VOXELS = before
  assert found.shape == new and found.dtype == np.uint8
  np.testing.assert_array_equal(found[clear], expected[clear])


def test_an_equal_grid_is_left_as_it_is():
  label = np.array([[1, 2, 1]], np.uint8)
  score = np.array([[0.5, 0.4, 0.9]], np.float32)
  np.testing.assert_array_equal(to_native.label_map(label, score, (1, 3), 0.5), [[1, 0, 1]])


@pytest.mark.parametrize("factor", [2, 3])
def test_a_half_space_keeps_its_face(factor):
  """p falls from 1 to 0 between centres 3 and 4: the interpolated face lies at p = 1/2."""
  score = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)[:, None] * np.ones((1, 2), np.float32)
  found = to_native.label_map(np.ones(score.shape, np.uint8), score, (8 * factor, 2), 0.5)
  centres = (np.arange(8 * factor) + 0.5) / factor - 0.5
  np.testing.assert_array_equal(found[:, 0], centres <= 3.5)


def test_no_gap_opens_between_classes_that_touch():
  """Each is below the threshold halfway, both together are not."""
  label = np.array([1, 1, 2, 2], np.uint8)[:, None]
  score = np.full((4, 1), 0.6, np.float32)
  found = to_native.label_map(label, score, (12, 1), 0.5)
  np.testing.assert_array_equal(found[:, 0], [1] * 6 + [2] * 6)


def test_a_mask_is_its_interpolated_plane_at_the_threshold(monkeypatch):
  plane = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32)
  monkeypatch.setattr(to_native, "WORK_VOXELS", 3 * 7 * 9)
  found = to_native.mask(lambda rows: plane[rows], plane.shape, (11, 7, 9), 0.5)
  np.testing.assert_array_equal(found, resample_to(plane, (11, 7, 9), 1) >= 0.5)
