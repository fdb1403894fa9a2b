"""Orientation, spacing and the way back: exact for every axis order, close for oblique ones."""

import itertools
import os
from pathlib import Path
import warnings

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from nibabel import orientations
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats import nifti
from condseg_jax.geometry import axcodes
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import check_affine
from condseg_jax.geometry import corner_distance
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume

DATA = os.environ.get("CONDSEG_TEST_DATA")
SHAPE = (2, 3, 4)
SPACING = np.array([0.7, 1.1, 2.5])
ORIENTATIONS = [
  (order, signs)
  for order in itertools.permutations(range(3))
  for signs in itertools.product((1, -1), repeat=3)
]


def axis_affine(order, signs, rotation=None):
  """Array axis i runs along world axis order[i], in the direction signs[i]."""
  affine = np.eye(4)
  affine[:3, :3] = 0.0
  for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
    affine[world, axis] = sign * SPACING[axis]
  if rotation is not None:
    affine[:3, :3] = rotation @ affine[:3, :3]
  affine[:3, 3] = (-120.25, 33.1, 870.0)
  return affine


def numbered(affine, channels=()):
  size = int(np.prod(SHAPE + channels))
  return Volume(np.arange(size, dtype=np.int16).reshape(SHAPE + channels), affine)


def world_by_value(volume):
  """World position of every voxel, in the order of the (unique) voxel values."""
  index = np.indices(volume.array.shape).reshape(3, -1)
  world = volume.affine[:3, :3] @ index + volume.affine[:3, 3:]
  return world[:, np.argsort(volume.array.ravel())]


def test_there_are_48_axis_orders_and_flips():
  assert len({axcodes(axis_affine(*o)) for o in ORIENTATIONS}) == 48


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_axis_order_becomes_superior_posterior_left_and_goes_back(order, signs):
  volume = numbered(axis_affine(order, signs))
  canonical = to_canonical(volume)
  assert axcodes(canonical.affine) == ("S", "P", "L")
  np.testing.assert_allclose(world_by_value(canonical), world_by_value(volume), atol=1e-10)
  # Canonical axis d (S, P, L) is the array axis that runs along world axis 2 - d.
  native_axis = [order.index(world) for world in (2, 1, 0)]
  assert canonical.array.shape == tuple(SHAPE[axis] for axis in native_axis)
  np.testing.assert_allclose(canonical.spacing, SPACING[native_axis])
  back = from_canonical(canonical.array * 2, volume.geometry)
  np.testing.assert_array_equal(back.array, volume.array * 2)
  assert back.affine.tobytes() == volume.affine.tobytes()


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_channels_ride_along(order, signs):
  volume = numbered(axis_affine(order, signs), channels=(5,))
  canonical = to_canonical(volume)
  first = to_canonical(Volume(volume.array[..., 0], volume.affine))
  np.testing.assert_array_equal(canonical.array[..., 0], first.array)
  np.testing.assert_array_equal(
    from_canonical(canonical.array, volume.geometry).array, volume.array)


@settings(max_examples=60, deadline=None)
@given(
  orientation=st.sampled_from(ORIENTATIONS),
  angles=st.tuples(*[st.floats(-180.0, 180.0)] * 3),
)
def test_oblique_volumes_keep_their_axes(orientation, angles):
  rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
  volume = numbered(axis_affine(*orientation, rotation))
  canonical = to_canonical(volume)
  np.testing.assert_allclose(world_by_value(canonical), world_by_value(volume), atol=1e-9)
  assert sorted(canonical.array.shape) == sorted(SHAPE)
  assert sorted(canonical.spacing) == pytest.approx(sorted(SPACING))
  back = from_canonical(canonical.array, volume.geometry)
  np.testing.assert_array_equal(back.array, volume.array)
  assert back.affine.tobytes() == volume.affine.tobytes()


@settings(max_examples=40, deadline=None)
@given(
  orientation=st.sampled_from(ORIENTATIONS),
  vector=st.tuples(*[st.floats(-1.0, 1.0)] * 3),
  degrees=st.floats(0.0, 30.0),
)
def test_tilted_volumes_are_canonical_by_the_nearest_axes(orientation, vector, degrees):
  length = np.linalg.norm(vector)
  axis = np.array(vector) / length if length > 0.1 else np.array([1.0, 0.0, 0.0])
  rotation = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
  tilted = to_canonical(numbered(axis_affine(*orientation, rotation)))
  straight = to_canonical(numbered(axis_affine(*orientation)))
  np.testing.assert_array_equal(tilted.array, straight.array)
  assert axcodes(tilted.affine) == ("S", "P", "L")


def test_axial_ct_as_converted_from_dicom():
  # 512 x 512 x 20 head-first supine: rows run to the patient's left, so x falls in RAS.
  affine = np.array([[-0.75, 0, 0, 190], [0, -0.75, 0, 200], [0, 0, 5, -300], [0, 0, 0, 1.0]])
  grid = canonical_geometry(Geometry((512, 512, 20), affine))
  assert grid.shape == (20, 512, 512)
  assert grid.spacing == (5.0, 0.75, 0.75)
  expected = np.array([[0, 0, -0.75, 190], [0, -0.75, 0, 200], [5, 0, 0, -300], [0, 0, 0, 1.0]])
  np.testing.assert_array_equal(grid.affine, expected)


def test_sagittal_mr_as_converted_from_dicom():
  # Array axes towards P, I, L: the sagittal series of many T1 protocols.
  affine = np.array([[0, 0, -1.2, 80], [-1, 0, 0, 120], [0, -1, 0, 110], [0, 0, 0, 1.0]])
  grid = canonical_geometry(Geometry((256, 240, 170), affine))
  assert axcodes(affine) == ("P", "I", "L")
  assert grid.shape == (240, 256, 170)
  # I becomes S: the origin moves to the last of 240 rows, 239 mm down.
  np.testing.assert_array_equal(grid.affine[:3, 3], [80, 120, 110 - 239])


def test_gantry_tilt_is_kept_as_a_shear():
  tilt = np.deg2rad(15.0)
  affine = np.diag([-0.5, -0.5, 5 * np.cos(tilt), 1.0])
  affine[1, 2] = 5 * np.sin(tilt)
  geometry = Geometry((8, 8, 6), affine)
  assert geometry.spacing == pytest.approx((0.5, 0.5, 5.0))
  grid = canonical_geometry(geometry)
  np.testing.assert_array_equal(grid.affine[:3, 0], affine[:3, 2])


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
def test_canonical_geometry_needs_no_voxels(order, signs):
  volume = numbered(axis_affine(order, signs))
  grid = canonical_geometry(volume.geometry)
  assert grid.shape == to_canonical(volume).array.shape
  np.testing.assert_array_equal(grid.affine, to_canonical(volume).affine)


def test_pictures_are_left_as_they_are():
  volume = Volume(np.zeros((4, 5, 3), np.uint8), np.eye(3))
  assert volume.ndim == 2 and volume.geometry.shape == (4, 5) and axcodes(volume.affine) == ()
  assert to_canonical(volume) is volume
  assert canonical_geometry(volume.geometry).shape == (4, 5)
  assert from_canonical(volume.array, volume.geometry).array is volume.array


def test_from_canonical_refuses_the_native_shape():
  volume = numbered(axis_affine((0, 1, 2), (1, 1, 1)))
  with pytest.raises(ValueError, match=r"canonical grid is \(4, 3, 2\)"):
    from_canonical(volume.array, volume.geometry)


def broken(row, column, value):
  affine = np.diag([1.0, 2.0, 3.0, 1.0])
  affine[row, column] = value
  return affine


@pytest.mark.parametrize(("affine", "reason"), [
  (broken(1, 1, 0.0), "column 1 of the affine is zero"),
  (broken(0, 3, np.nan), "NaN or Inf"),
  (broken(2, 2, np.inf), "NaN or Inf"),
  (broken(3, 0, 0.5), "last row"),
  (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
  (np.array([[1e-8, 1e-8, 0, 0], [1e-8, 1.00001e-8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
   "singular"),
  (np.eye(5), "shape"),
  (np.zeros((3, 4)), "shape"),
])
def test_degenerate_affines_are_named(affine, reason):
  with pytest.raises(InputError, match=reason) as caught:
    check_affine(affine, "scan.nii")
  assert caught.value.subject == "scan.nii"
  for make in (lambda: Geometry((2, 2, 2), affine), lambda: Volume(np.zeros((2,) * 3), affine)):
    with pytest.raises(InputError, match=reason):
      make()


def test_tiny_voxels_are_not_singular():
  check_affine(np.diag([1e-6, 1e-6, 1e-6, 1.0]))


def test_shape_must_fit_the_affine():
  with pytest.raises(ValueError):
    Geometry((2, 3), np.eye(4))
  with pytest.raises(ValueError):
    Geometry((2, 0, 3), np.eye(4))
  with pytest.raises(ValueError):
    Volume(np.zeros((2, 3)), np.eye(4))
  with pytest.raises(ValueError):
    Volume(np.zeros((2, 3, 4, 5, 6)), np.eye(4))


def test_a_volume_does_not_share_its_affine_with_the_caller():
  affine = np.eye(4)
  volume = Volume(np.zeros((1, 1, 1)), affine)
  affine[0, 0] = 7.0
  assert volume.affine[0, 0] == 1.0
  with pytest.raises(ValueError):
    volume.affine[0, 0] = 7.0


def test_corner_distance_of_a_shift_is_its_length():
  a = Geometry((10, 20, 30), np.diag([1.0, 2.0, 3.0, 1.0]))
  moved = a.affine.copy()
  moved[:3, 3] = (3.0, -4.0, 12.0)
  assert corner_distance(a, Geometry(a.shape, moved)) == pytest.approx(13.0)
  assert corner_distance(a, a) == 0.0


@pytest.mark.parametrize("degrees", [0.1, 10.0, 180.0])
def test_corner_distance_of_a_rotation_is_the_chord_of_the_far_corner(degrees):
  a = Geometry((10, 20, 30), np.eye(4))
  turned = np.eye(4)
  turned[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
  radius = np.hypot(9.5, 19.5)
  expected = 2 * radius * np.sin(np.deg2rad(degrees) / 2)
  b = Geometry(a.shape, turned)
  assert corner_distance(a, b) == pytest.approx(expected)
  assert corner_distance(b, a) == pytest.approx(expected)


def test_corner_distance_needs_equal_shapes():
  with pytest.raises(ValueError, match="shapes differ"):
    corner_distance(Geometry((1, 2, 3), np.eye(4)), Geometry((3, 2, 1), np.eye(4)))


def shifted(volume, mm):
  affine = volume.affine.copy()
  affine[0, 3] += mm
  return Volume(volume.array, affine)


def test_image_and_label_must_lie_on_one_grid():
  image = numbered(axis_affine((0, 1, 2), (-1, 1, 1)))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    label = match_grid("i.nii", image.geometry, "l.nii", shifted(image, 1e-5))
  assert label.affine.tobytes() == image.affine.tobytes()
  with pytest.warns(UserWarning, match="l.nii"):
    match_grid("i.nii", image.geometry, "l.nii", shifted(image, 0.05))
  with pytest.raises(InputError, match="0.2 mm") as caught:
    match_grid("i.nii", image.geometry, "l.nii", shifted(image, 0.2))
  assert caught.value.subject == "l.nii" and "i.nii" in caught.value.cure


def test_a_label_of_another_shape_or_orientation_is_refused():
  image = numbered(axis_affine((0, 1, 2), (1, 1, 1)))
  with pytest.raises(InputError, match="shape"):
    match_grid("i", image.geometry, "l", Volume(image.array[:-1], image.affine))
  flipped = Volume(image.array, axis_affine((0, 1, 2), (1, -1, 1)))
  with pytest.raises(InputError, match="mm away"):
    match_grid("i", image.geometry, "l", flipped)


@pytest.mark.parametrize("codes", ["LPS", "SPL", "RAS", "PIR"])
def test_a_label_stored_along_other_axes_is_turned_by_geometry(codes):
  image = numbered(axis_affine((0, 1, 2), (1, 1, 1)))
  change = orientations.ornt_transform(orientations.io_orientation(image.affine),
                                       orientations.axcodes2ornt(codes))
  other = Volume(orientations.apply_orientation(image.array, change),
                 image.affine @ orientations.inv_ornt_aff(change, image.array.shape))
  label = match_grid("i", image.geometry, "l", other)
  np.testing.assert_array_equal(label.array, image.array)
  np.testing.assert_array_equal(label.affine, image.affine)


def test_half_a_voxel_is_too_much_for_small_voxels():
  image = Volume(np.zeros((4, 4, 4)), np.diag([0.02, 0.02, 0.02, 1.0]))
  with pytest.raises(InputError):
    match_grid("i", image.geometry, "l", shifted(image, 0.05))


@pytest.mark.skipif(not DATA, reason="CONDSEG_TEST_DATA is not set")
def test_real_volumes_go_to_canonical_and_back():
  root = Path(DATA)
  paths = [*sorted((root / "hippocampus/imagesTr").glob("*.nii.gz"))[:5],
           root / "ct_sample/ct.nii.gz", root / "ct_sample/ct_dicom_labels.nii.gz"]
  for path in paths:
    volume = nifti.read_nifti(path)
    canonical = to_canonical(volume)
    assert axcodes(canonical.affine) == ("S", "P", "L")
    assert corner_distance(canonical.geometry, canonical_geometry(volume.geometry)) == 0.0
    back = from_canonical(np.ascontiguousarray(canonical.array), volume.geometry)
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.affine.tobytes() == volume.affine.tobytes()


@pytest.mark.skipif(not DATA, reason="CONDSEG_TEST_DATA is not set")
def test_the_liver_lies_on_the_right_of_the_patient_and_above_the_colon():
  label = to_canonical(files.read_label(Path(DATA) / "ct_sample/ct_labels.nii.gz"))
  centre = {v: np.argwhere(label.array == v).mean(axis=0) for v in (1, 2, 3, 5, 20)}
  assert centre[5][2] < centre[1][2]  # liver right of spleen: smaller index towards L
  assert centre[2][2] < centre[3][2]  # right kidney right of the left one
  assert centre[5][0] > centre[20][0]  # liver superior to colon
