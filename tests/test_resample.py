"""Resampling: the field of view stays, lines stay lines, labels stay labels."""

import itertools
import os
from pathlib import Path

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import ndimage

from condseg_jax.formats import files
from condseg_jax.formats import nifti
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.resample import linear_taps
from condseg_jax.resample import resample_image
from condseg_jax.resample import resample_labels
from condseg_jax.resample import resample_to
from condseg_jax.resample import resampled_geometry
from condseg_jax.resample import resampled_rows
from condseg_jax.resample import source_rows

DATA = os.environ.get("CONDSEG_TEST_DATA")
RNG = np.random.default_rng(0)
TILT = np.array([[0, 0.3, -0.6, 10], [0.2, -0.7, 0.1, -20], [3, 0.1, 0.2, 30], [0, 0, 0, 1.0]])


def scaled(*spacing):
  return np.diag([*spacing, 1.0])


def centres(size_in, size_out):
  """Input index of every output centre, by the definition: faces coincide."""
  return (np.arange(size_out) + 0.5) * size_in / size_out - 0.5


def faces(volume):
  """World positions of the corners of the field of view."""
  ends = itertools.product(*((-0.5, size - 0.5) for size in volume.geometry.shape))
  return np.array([volume.affine @ (*corner, 1.0) for corner in ends])


sizes = st.integers(1, 12)
spacings = st.floats(0.3, 4.0)


@settings(max_examples=40, deadline=None)
@given(st.tuples(sizes, sizes, sizes), st.tuples(spacings, spacings, spacings))
def test_the_field_of_view_stays_where_it_is(shape, spacing):
  volume = Volume(np.zeros(shape, np.uint8), TILT)
  image, labels = resample_image(volume, spacing), resample_labels(volume, spacing)
  np.testing.assert_allclose(faces(image), faces(volume), atol=1e-9)
  np.testing.assert_array_equal(labels.affine, image.affine)
  grid = resampled_geometry(volume.geometry, spacing)
  assert labels.array.shape == image.array.shape == grid.shape
  for n, old, new, m in zip(shape, volume.spacing, spacing, image.array.shape, strict=True):
    assert m >= 1 and (abs(m - n * old / new) <= 0.5 + 2e-3 * n or m == 1)


@settings(max_examples=30, deadline=None)
@given(st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes),
       st.tuples(*[st.floats(-5, 5)] * 4))
def test_a_plane_is_reproduced_wherever_it_is_known(old, new, coefficients):
  *slope, constant = coefficients
  grids = np.meshgrid(*(np.arange(size) for size in old), indexing="ij")
  array = constant + sum(s * g for s, g in zip(slope, grids, strict=True))
  # Beyond the last centre the border value is repeated, so the position is clipped.
  at = [np.clip(centres(n, m), 0, n - 1) for n, m in zip(old, new, strict=True)]
  expected = constant + sum(
    s * g for s, g in zip(slope, np.meshgrid(*at, indexing="ij"), strict=True))
  np.testing.assert_allclose(resample_to(array, new, 1), expected, atol=1e-4)


def test_a_ramp_keeps_its_slope_in_the_world():
  array = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 3, 4))
  volume = Volume(array, scaled(2.0, 1.0, 1.0))
  out = resample_image(volume, (0.5, 1.0, 1.0))
  world = out.affine[0, 0] * np.arange(80) + out.affine[0, 3]
  np.testing.assert_allclose(out.array[2:-2, 1, 1], world[2:-2] / 2.0, atol=1e-5)
  cubic = resample_image(volume, (0.5, 1.0, 1.0), order=3)
  np.testing.assert_allclose(cubic.array[24:-24, 1, 1], world[24:-24] / 2.0, atol=1e-4)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("value", [0.1, -1024.0, 3e4])
def test_constants_stay_constant(order, value):
  volume = Volume(np.full((7, 5, 3), value, np.float32), scaled(1.0, 0.8, 3.0))
  out = resample_image(volume, (0.37, 1.1, 1.9), order=order).array
  if order == 1:
    np.testing.assert_array_equal(out, np.float32(value))
  else:
    np.testing.assert_allclose(out, value, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("old", "new"), [
  ((9, 11, 6), (14, 7, 6)), ((1, 8, 9), (4, 8, 18)), ((12, 13), (5, 40)), ((30,), (7,)),
  ((6, 5, 4), (1, 1, 1))])
def test_scipy_agrees(order, old, new):
  array = RNG.normal(size=old).astype(np.float32)
  zoom = np.array(new) / old
  expected = ndimage.zoom(array, zoom, order=order, mode="nearest", grid_mode=True)
  np.testing.assert_allclose(resample_to(array, new, order), expected, atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_memory_order_and_type_of_the_input_do_not_matter(order):
  array = RNG.integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
  expected = resample_to(array, (9, 3, 8), order)
  assert expected.dtype == np.float32
  for same in (np.asfortranarray(array), array[::-1][::-1], array.astype(">i2"),
               array.astype(np.float64)):
    np.testing.assert_array_equal(resample_to(same, (9, 3, 8), order), expected)


@pytest.mark.parametrize("order", [1, 3])
def test_channels_are_resampled_one_by_one(order):
  array = RNG.normal(size=(6, 7, 3)).astype(np.float32)
  out = resample_image(Volume(array, np.eye(3)), (0.5, 2.0), order=order)
  assert out.array.shape == (12, 4, 3)
  for channel in range(3):
    alone = resample_to(array[..., channel], (12, 4), order)
    np.testing.assert_allclose(out.array[..., channel], alone, atol=1e-6)


def test_linear_taps_stay_inside_and_ascend():
  for n, m in itertools.product((1, 2, 5, 12), (1, 2, 7, 30)):
    low, high, weight = linear_taps(n, m)
    assert low.min() >= 0 and high.max() <= n - 1
    assert np.all(np.diff(low) >= 0) and np.all(np.diff(high) >= 0)
    assert np.all((weight >= 0) & (weight < 1))
    np.testing.assert_allclose(low + weight, np.clip(centres(n, m), 0, n - 1), atol=1e-6)


def test_nothing_happens_when_the_spacing_agrees():
  array = RNG.normal(size=(6, 7, 8)).astype(np.float32)
  volume = Volume(array, scaled(1.0, 0.8, 3.0))
  for order in (1, 3):
    out = resample_image(volume, (1.0005, 0.7995, 3.0), order=order)
    np.testing.assert_array_equal(out.array, array)
    np.testing.assert_array_equal(out.affine, volume.affine)
  labels = Volume(RNG.integers(0, 5, (2000, 2, 2)), scaled(1.0, 1.0, 1.0))
  assert resample_labels(labels, (1.0009, 1.0, 1.0)).array.shape == (2000, 2, 2)
  assert resample_labels(labels, (1.0011, 1.0, 1.0)).array.shape == (1998, 2, 2)


def test_a_blob_stays_in_its_place_in_the_world():
  index = np.indices((24, 30, 28))
  blob = (sum((i - c) ** 2 for i, c in zip(index, (11, 14, 15), strict=True)) < 60).astype(np.uint8)
  volume = Volume(blob, TILT)
  before = TILT[:3, :3] @ np.argwhere(blob).mean(axis=0) + TILT[:3, 3]
  for spacing in itertools.product((1.5, 6.0), (0.4, 1.52), (0.64, 1.0)):
    out = resample_labels(volume, spacing)
    centre = out.affine @ np.append(np.argwhere(out.array).mean(axis=0), 1.0)
    assert np.linalg.norm(centre[:3] - before) < 0.1 * max(spacing)
    mass = resample_image(volume, spacing)
    centre = mass.affine @ np.append(ndimage.center_of_mass(mass.array), 1.0)
    assert np.linalg.norm(centre[:3] - before) < 0.1 * max(spacing)
    volume_ratio = (out.array.sum() * np.prod(out.spacing)) / (blob.sum() * np.prod(volume.spacing))
    assert 0.85 < volume_ratio < 1.15


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.sampled_from([0, 1, 2, 7, 104, 255, 300]), min_size=1, max_size=4),
  st.tuples(sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.integers(0, 99))
def test_labels_are_the_argmax_of_the_one_hot_map(values, old, new, seed):
  array = np.random.default_rng(seed).choice(values, old).astype(np.int32)
  out = resample_to(array, new, 0)
  assert out.dtype == array.dtype and out.shape == new
  present = np.unique(array)
  assert set(np.unique(out)) <= set(present)
  scores = np.stack([resample_to(array == value, new, 1) for value in present])
  chosen = np.take_along_axis(scores, np.searchsorted(present, out)[None], 0)[0]
  np.testing.assert_allclose(chosen, scores.max(axis=0), atol=1e-5)


def test_ties_go_to_foreground_and_then_to_unlabelled():
  mask = np.array([0, 1, 1, 255, 255, 0, 0, 0], np.uint8)
  np.testing.assert_array_equal(resample_to(mask, (4,), 0), [1, 255, 255, 0])


def test_halving_a_resolution_does_not_shift_a_box():
  mask = np.zeros((16, 16), np.uint8)
  mask[4:12, 6:10] = 1
  expected = np.zeros((8, 8), np.uint8)
  expected[2:6, 3:5] = 1
  np.testing.assert_array_equal(resample_to(mask, (8, 8), 0), expected)
  np.testing.assert_array_equal(resample_to(expected, (16, 16), 0), mask)


def test_a_structure_between_two_output_centres_vanishes_without_a_trace():
  mask = np.zeros((9, 9), np.uint8)
  mask[3, 3] = 2  # output centres lie at 1, 4 and 7
  mask[4, 7] = 9
  out = resample_to(mask, (3, 3), 0)
  expected = np.zeros((3, 3), np.uint8)
  expected[1, 2] = 9
  np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("array", [
  np.zeros((3, 3), np.float32), np.full((3, 3), -1), np.full((3, 3), 65536),
  np.zeros((3, 3, 2), np.uint8)])
def test_what_is_no_label_map_is_refused(array):
  with pytest.raises(ValueError):
    resample_to(array, (4, 5), 0)


def test_bool_masks_stay_bool():
  out = resample_to(np.eye(4, dtype=bool), (8, 8), 0)
  assert out.dtype == bool and out[0, 0] and not out[0, 7]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, -1.0, 1.0),
                                     (1.0, float("nan"), 1.0)])
def test_an_impossible_spacing_is_refused(spacing):
  volume = Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
  for function in (resample_image, resample_labels):
    with pytest.raises(ValueError, match="spacing"):
      function(volume, spacing)


def test_other_orders_and_shapes_are_refused():
  with pytest.raises(ValueError, match="order 2"):
    resample_to(np.zeros((2, 2)), (4, 4), 2)
  with pytest.raises(ValueError, match="shape"):
    resample_to(np.zeros((2, 2)), (4, 0), 1)
  with pytest.raises(ValueError, match="shape"):
    resample_to(np.zeros((2, 2)), (4, 4, 4), 1)


@pytest.mark.parametrize("order", [1, 3])
def test_a_single_slice_becomes_equal_slices(order):
  array = RNG.normal(size=(1, 6, 6)).astype(np.float32)
  out = resample_image(Volume(array, scaled(5.0, 1.0, 1.0)), (1.0, 1.0, 1.0), order=order)
  assert out.array.shape == (5, 6, 6)
  for plane in out.array:
    np.testing.assert_allclose(plane, array[0], atol=1e-5)
  coarse = resample_image(out, (50.0, 1.0, 1.0), order=order)
  assert coarse.array.shape == (1, 6, 6) and coarse.spacing[0] == pytest.approx(5.0)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3),
       st.tuples(spacings, spacings, spacings))
def test_the_way_back_ends_on_the_native_grid(order, signs, spacing):
  affine = np.eye(4)
  affine[:3, :3] = np.eye(3)[list(order)].T * signs * (0.8, 1.2, 2.0)
  native = Volume(RNG.integers(0, 3, (9, 6, 4)).astype(np.uint8), affine)
  canonical = to_canonical(native)
  coarse = resample_labels(canonical, spacing)
  back = from_canonical(resample_to(coarse.array, canonical.geometry.shape, 0), native.geometry)
  assert back.array.shape == native.array.shape
  assert back.affine.tobytes() == native.affine.tobytes()


def test_refining_twofold_and_going_back_changes_no_label():
  labels = np.zeros((10, 10, 10), np.uint8)
  labels[2:7, 3:9, 1:6], labels[7:9, 3:9, 2:8] = 1, 255
  fine = resample_to(labels, (30, 30, 30), 0)
  np.testing.assert_array_equal(resample_to(fine, (10, 10, 10), 0), labels)


@pytest.mark.skipif(not DATA, reason="CONDSEG_TEST_DATA is not set")
def test_a_real_ct_survives_a_detour_over_another_spacing():
  root = Path(DATA) / "ct_sample"
  image = to_canonical(nifti.read_nifti(root / "ct.nii.gz"))
  labels = to_canonical(files.read_label(root / "ct_labels.nii.gz"))
  spacing = (2.0, 2.5, 2.5)
  fine = resample_image(image, spacing)
  assert image.array.min() <= fine.array.min() and fine.array.max() <= image.array.max()
  assert abs(fine.array.mean() - image.array.mean()) < 2.0
  back = resample_to(resample_labels(labels, spacing).array, labels.array.shape, 0)
  liver, again = labels.array == 5, back == 5
  assert 2 * np.sum(liver & again) / (liver.sum() + again.sum()) > 0.97


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 15)] * 3), st.data())
def test_rows_are_those_of_the_whole(old, new, data):
  """In the same digits, of images and of labels, from the rows of the input alone."""
  start = data.draw(st.integers(0, new[0] - 1))
  rows = slice(start, data.draw(st.integers(start + 1, new[0])))
  source = source_rows(old, new, rows)
  image = RNG.normal(size=old).astype(np.float32)
  label = RNG.choice([0, 1, 255], old).astype(np.uint8)
  for array, order in ((image, 1), (label, 0)):
    part = resampled_rows(array[source], new, order, rows, old)
    np.testing.assert_array_equal(part, resample_to(array, new, order)[rows])
