"""Scribbles: thin strokes that are true, and silence elsewhere."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import ndimage

from condseg_jax.datasets.scribbles import Scribbles
from condseg_jax.errors import InputError


def blob(shape, seed=0):
  field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
  mask = (field > np.quantile(field, 0.8)).astype(np.uint8)
  mask[..., :5, :5] = 255
  return mask


def drawn(mask, rate=1.0, seed=0, name="case/liver"):
  return Scribbles(rate, seed).apply(mask, (1.0,) * mask.ndim, name)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([(60, 80), (5, 40, 44), (3, 300, 20), (300, 333)]), st.integers(0, 99))
def test_strokes_are_true_and_thin(shape, seed):
  mask = blob(shape, seed)
  strokes = drawn(mask)
  said = strokes != 255
  np.testing.assert_array_equal(strokes[said], mask[said])
  assert not said[mask == 255].any()
  assert 0 < (strokes == 1).sum() < 0.5 * (mask == 1).sum()
  assert 0 < (strokes == 0).sum() < 0.3 * (mask == 0).sum()


def test_strokes_keep_away_from_the_boundary_and_run_along_the_middle():
  mask = np.zeros((60, 100), np.uint8)
  mask[20:41, 10:90] = 1
  rows = np.argwhere(drawn(mask) == 1)[:, 0]
  assert rows.min() >= 24 and rows.max() <= 36 and 28 <= np.median(rows) <= 32


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_the_rate_is_that_of_the_slices(rate):
  strokes = drawn(blob((20, 32, 32)), rate)
  assert (strokes != 255).any(axis=(1, 2)).sum() == round(20 * rate)


def test_a_class_in_one_slice_is_not_missed():
  mask = np.zeros((40, 20, 20), np.uint8)
  mask[17, 5:12, 5:12] = 1
  for seed in range(5):
    assert (drawn(mask, 0.05, seed) == 1).any()


def test_a_slice_without_the_class_has_a_stroke_outside_only():
  strokes = drawn(np.zeros((3, 30, 30), np.uint8))
  assert ((strokes == 0).any(axis=(1, 2))).all() and not (strokes == 1).any()


@pytest.mark.parametrize("size", [1, 2])
def test_tiny_structures_get_a_voxel(size):
  mask = np.zeros((30, 30), np.uint8)
  mask[10:10 + size, 10:10 + size] = 1
  assert 1 <= (drawn(mask) == 1).sum() <= size**2


def test_where_nothing_is_labelled_nothing_is_said():
  assert (drawn(np.full((2, 9, 9), 255, np.uint8)) == 255).all()


def test_chance_depends_on_seed_and_name_alone():
  mask = blob((20, 24, 24))
  first = drawn(mask, 0.3)
  np.testing.assert_array_equal(first, drawn(mask, 0.3))
  assert (first != drawn(mask, 0.3, seed=1)).any() and (first != drawn(mask, 0.3, name="b/c")).any()


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_wrong_usage(rate):
  with pytest.raises(InputError) as caught:
    Scribbles(rate)
  assert caught.value.usage
