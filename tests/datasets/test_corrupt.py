"""Damaged masks: the rate is met, truth and unlabelled voxels are kept where they must be."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import ndimage

from condseg_jax.datasets import corrupt as lib
from condseg_jax.datasets.corrupt import Corruption
from condseg_jax.datasets.corrupt import KINDS
from condseg_jax.errors import InputError

SPACING = {2: (1.0, 1.0), 3: (3.0, 1.0, 1.5)}


def ball(ndim=3):
  """A structure in the middle, with a corner that nobody labelled."""
  shape, spacing = ((14, 30, 26) if ndim == 3 else (48, 60)), SPACING[ndim]
  axes = np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)),
                     indexing="ij")
  mask = (sum(a**2 for a in axes) < 10**2).astype(np.uint8)
  mask[(slice(0, 6),) * ndim] = 255
  return mask


def damaged(mask, kind, rate=0.25, seed=0, name="case/liver"):
  return Corruption(kind, rate, seed).apply(mask, SPACING[mask.ndim], name)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([k for k in KINDS if k != "boundary"]), st.sampled_from([2, 3]),
       st.floats(0, 1), st.integers(0, 5))
def test_the_rate_is_met_to_the_voxel(kind, ndim, rate, seed):
  mask = ball(ndim)
  before = mask.copy()
  after = damaged(mask, kind, rate, seed)
  np.testing.assert_array_equal(mask, before)
  changed = after != mask
  assert changed.sum() == round(rate * (mask == 1).sum())
  assert not changed[mask == 255].any()
  assert (mask[changed] == (0 if kind == "false_positives" else 1)).all()
  assert set(np.unique(after)) <= {0, 1, 255}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("rate", [0.1, 0.25])
def test_the_boundary_moves_by_about_the_rate_and_nearby(ndim, rate):
  mask = ball(ndim)
  after = damaged(mask, "boundary", rate)
  changed = after != mask
  assert 0.8 * rate < changed.sum() / (mask == 1).sum() <= rate
  assert set(mask[changed].tolist()) == {0, 1}
  distance = ndimage.distance_transform_edt(mask != 1, sampling=SPACING[ndim])
  distance += ndimage.distance_transform_edt(mask == 1, sampling=SPACING[ndim])
  assert distance[changed].max() < 8 and np.median(distance[changed]) < 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_in_a_large_box_the_boundary_moves_by_distances_of_a_coarser_grid(ndim, monkeypatch):
  mask = ball(ndim)
  exact = damaged(mask, "boundary")
  monkeypatch.setattr(lib, "DISTANCES", mask.size // 8)
  coarse = damaged(mask, "boundary")
  changed = exact != mask
  assert (coarse != mask).sum() == changed.sum() == round(0.25 * (mask == 1).sum())
  assert 0 < (coarse != exact).sum() < 0.5 * changed.sum()
  np.testing.assert_array_equal(coarse == 255, mask == 255)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_pieces_and_working_in_place_change_nothing(kind, ndim, monkeypatch):
  mask = ball(ndim)
  expected = damaged(mask, kind)
  monkeypatch.setattr(lib, "PIECE", 100)
  result = Corruption(kind, 0.25).apply(mask, SPACING[ndim], "case/liver", in_place=True)
  assert result is mask
  np.testing.assert_array_equal(result, expected)


def test_a_part_is_cut_off_by_a_plane():
  """Some direction parts what is lost from what is left: the means' difference, at its best."""
  mask = ball()
  after = damaged(mask, "parts", 0.3)
  lost, left = np.argwhere((mask == 1) & (after == 0)), np.argwhere(after == 1)
  lost, left = lost * SPACING[3], left * SPACING[3]
  points, sign = np.vstack([lost, left]), np.r_[np.ones(len(lost)), -np.ones(len(left))]
  weights = np.zeros(4)
  homogeneous = np.c_[points - points.mean(0), np.ones(len(points))] * sign[:, None]
  for _ in range(20000):  # the perceptron ends exactly if a plane exists
    wrong = homogeneous[homogeneous @ weights <= 0]
    if not len(wrong):
      break
    weights += wrong.mean(0)
  assert len(lost) and not len(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_chance_depends_on_seed_and_name_alone(kind):
  mask = ball()
  first = damaged(mask, kind)
  np.testing.assert_array_equal(first, damaged(mask, kind))
  assert (first != damaged(mask, kind, seed=1)).any()
  assert (first != damaged(mask, kind, name="other/liver")).any()
  np.testing.assert_array_equal(damaged(mask, kind, 0.0), mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", ["nothing", "everything", "one voxel", "unlabelled"])
def test_extreme_masks(kind, fill):
  mask = np.full((4, 6, 8), {"everything": 1, "unlabelled": 255}.get(fill, 0), np.uint8)
  if fill == "one voxel":
    mask[2, 3, 4] = 1
  after = damaged(mask, kind, 1.0)
  if fill in ("nothing", "unlabelled"):
    np.testing.assert_array_equal(after, mask)
  elif fill == "one voxel" and kind != "boundary":
    assert (after != mask).sum() == 1
  assert (after == 255).sum() == (mask == 255).sum()


def test_false_positives_where_no_room_is_left():
  mask = np.ones((4, 6, 8), np.uint8)
  mask[0, 0, :3] = 0
  assert (damaged(mask, "false_positives", 0.5) == 1).all()


@pytest.mark.parametrize(("kind", "rate"), [("noise", 0.1), ("parts", -0.1), ("parts", 1.1)])
def test_wrong_usage(kind, rate):
  with pytest.raises(InputError) as caught:
    Corruption(kind, rate)
  assert caught.value.usage
