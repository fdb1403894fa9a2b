"""Image check: images of the trained kind have no findings, others are flagged or refused."""

import dataclasses

import numpy as np
import pytest

from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.infer.image_check import check_image
from condseg_jax.infer.image_check import enforce
from condseg_jax.infer.image_check import FLAG
from condseg_jax.infer.image_check import REFUSE
from condseg_jax.plan import Plan

CT = Plan("ct", (2.0, 1.0, 1.0), (16, 32, 32), low=-60.0, high=220.0, mean=80.0, sd=50.0)
MR = Plan("mr", (2.0, 1.0, 1.0), (16, 32, 32))
RGB = Plan("rgb", (1.0, 1.0), (32, 32))
# Along D H W, as in a fingerprint.
TRAINED = {"native_spacing": {"min": [1.5, 0.7, 0.7], "max": [3.0, 1.2, 1.2]},
           "native_field": {"min": [60, 40, 40], "max": [90, 60, 60]},
           "oblique_degrees": {"max": [5.0]}, "intensity": {"p0.5": -60.0}}
# Index → RAS+ for axes towards right, posterior and superior.
AFFINE = np.array([[1.0, 0, 0, -20], [0, -1.0, 0, 30], [0, 0, 2.0, -10], [0, 0, 0, 1]])
SHAPE = (48, 50, 36)


def ct(shape=SHAPE, affine=AFFINE):
  """A body of 50 HU in air, with noise."""
  rng = np.random.default_rng(0)
  x, y = np.ogrid[-1:1:shape[0] * 1j, -1:1:shape[1] * 1j]
  body = np.where(x**2 + y**2 < 0.8, 50.0, -1000.0)[..., None]
  return Volume(np.rint(body + rng.normal(0, 12, shape)).astype(np.int16), affine)


def mr(scale=1.0):
  array = np.random.default_rng(1).gamma(3.0, 40.0 * scale, SHAPE)
  return Volume(array.astype(np.float32), AFFINE)


def kinds(volume, plan=CT, training=TRAINED, **more):
  return [(one.severity, one.kind) for one in check_image(volume, plan, training, **more)]


def scaled(volume, factors):
  affine = volume.affine @ np.diag([*factors, 1.0])
  return Volume(volume.array, affine)


# --- images of the trained kind -----------------------------------------------------------------
@pytest.mark.parametrize("training", [TRAINED, None, {}], ids=["recorded", "none", "empty"])
def test_the_trained_kind_passes_in_silence(training):
  assert kinds(ct(), training=training) == []
  assert kinds(ct(), training=training, modality="CT") == []
  for scale in (1e-3, 1.0, 1e4):
    assert kinds(mr(scale), MR, training) == []
  picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  assert kinds(Volume(picture, np.eye(3)), RGB, None) == []


def test_any_axes_will_do():
  from nibabel import orientations
  volume = ct()
  change = np.array([[2, -1], [0, 1], [1, -1]])
  turned = Volume(orientations.apply_orientation(volume.array, change),
                  volume.affine @ orientations.inv_ornt_aff(change, SHAPE))
  assert kinds(turned) == []
  assert kinds(scaled(turned, (3.0, 1.0, 1.0))) != []


# --- refusals -----------------------------------------------------------------------------------
def test_what_cannot_be_computed_is_refused_whatever_is_forced():
  nan = ct().array.astype(np.float32)
  nan[1, 2, 3] = np.nan
  for volume, plan, kind in (
      (Volume(nan, AFFINE), CT, "not_finite"),
      (Volume(np.zeros((*SHAPE, 3), np.int16), AFFINE), CT, "channels"),
      (Volume(np.zeros((*SHAPE, 12), np.int16), AFFINE), MR, "channels"),
      (Volume(np.zeros((20, 20), np.uint8), np.eye(3)), CT, "axes"),
      (Volume(np.zeros((20, 20), np.uint8), np.eye(3)), RGB, "channels")):
    findings = check_image(volume, plan)
    assert [(f.severity, f.kind, f.final) for f in findings] == [(REFUSE, kind, True)]
    with pytest.raises(InputError) as caught:
      enforce("scan.nii", findings, force=True)
    assert caught.value.subject == "scan.nii" and "--force" not in str(caught.value)


@pytest.mark.parametrize("training", [TRAINED, None], ids=["recorded", "none"])
def test_wrong_modality_is_refused(training):
  refused = [(REFUSE, "modality")]
  assert kinds(mr(), CT, training) == refused
  assert kinds(ct(), MR, {**(training or {}), "intensity": {"p0.5": 10.0}}) == refused
  assert kinds(ct(), CT, training, modality="MR") == refused
  assert kinds(mr(), MR, training, modality="PT") == refused
  assert kinds(Volume(ct().array + np.int16(1100), AFFINE), CT, training) == refused
  for scaled_to in (np.float32(1e-3), np.float32(1 / 400)):
    assert kinds(Volume(ct().array * scaled_to, AFFINE), CT, training) == refused


def test_a_model_of_shifted_values_takes_shifted_values():
  plan = dataclasses.replace(CT, low=970.0, high=1250.0, mean=1100.0)
  assert kinds(Volume(ct().array + np.int16(1024), AFFINE), plan) == []


def test_nothing_to_see_is_refused():
  assert kinds(Volume(np.full(SHAPE, -1000, np.int16), AFFINE)) == [(REFUSE, "constant")]
  air = np.random.default_rng(0).normal(-990, 15, SHAPE)
  assert kinds(Volume(air.astype(np.int16), AFFINE)) == [(REFUSE, "range")]


def test_pictures_of_other_ranges():
  unit = np.random.default_rng(0).random((40, 40, 3)).astype(np.float32)
  for array in (unit, unit * 60000, unit * 200 - 100):
    assert kinds(Volume(array, np.eye(3)), RGB, None) == [(REFUSE, "range")]


def test_one_slice():
  assert kinds(ct((48, 50, 1))) == [(REFUSE, "thin")]
  assert kinds(ct((48, 50, 1)), training=None) == [(REFUSE, "thin")]


# --- ranges -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("factor", "coarser", "finer"), [
    (0.9, None, None), (1.9, None, None), (2.1, FLAG, None), (7.9, FLAG, None),
    (8.1, REFUSE, FLAG), (1000, REFUSE, FLAG)])
def test_spacing_beyond_the_trained_range(factor, coarser, finer):
  training = {**TRAINED, "native_field": {"min": [1e-3] * 3, "max": [1e6] * 3}}
  for axis, index in (("SI", 2), ("AP", 1), ("LR", 0)):
    most = {"SI": 3.0, "AP": 1.2, "LR": 1.2}[axis]
    least = {"SI": 1.5, "AP": 0.7, "LR": 0.7}[axis]
    for target, expected in ((most * factor, coarser), (least / factor, finer)):
      factors = np.ones(3)
      factors[index] = target / ct().spacing[index]
      findings = check_image(scaled(ct(), factors), CT, training)
      assert [(f.severity, f.kind) for f in findings] == ([(expected, "spacing")] if expected
                                                          else [])
      assert all(axis in f.reason for f in findings)


def test_field_of_view_beyond_the_trained_one():
  for slices, expected in ((20, []), (14, [(FLAG, "field")]), (3, [(REFUSE, "field")]),
                           (85, []), (110, [(FLAG, "field")]), (500, [(FLAG, "field")])):
    assert kinds(ct((48, 50, slices))) == expected, slices


def test_orientation():
  turn = np.eye(4)
  for degrees, expected in ((10, []), (30, []), (40, [(FLAG, "orientation")])):
    a = np.radians(degrees)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    assert kinds(Volume(ct().array, turn @ AFFINE)) == expected
  sheared = AFFINE.copy()
  sheared[1, 2] = 0.6
  assert kinds(Volume(ct().array, sheared)) == [(FLAG, "orientation")]


def test_outliers_that_would_squash_an_mr_image():
  array = mr().array.copy()
  array[0, 0, :4] = 1e6
  assert kinds(Volume(array, AFFINE), MR) == [(FLAG, "range")]


def test_a_ct_without_its_rescale_intercept_is_refused(real_data):
  """Shifted by 1024; a few voxels that undershoot must not let it pass."""
  image = files.read_volume(real_data / "ct_sample" / "ct.nii.gz")
  shifted = Volume(image.array.astype(np.int32) + 1024, image.affine)
  assert (shifted.array < 0).any()
  assert (REFUSE, "modality") in kinds(shifted, CT)


# --- errors and warnings ------------------------------------------------------------------------
def test_a_refusal_is_an_error_unless_forced():
  findings = check_image(scaled(mr(), (3.0, 1.0, 1.0)), CT, TRAINED)
  assert [f.severity for f in findings] == [REFUSE, FLAG, FLAG]
  with pytest.raises(InputError, match="no value is negative.*, or override with force") as caught:
    enforce("a.nii", findings)
  assert caught.value.kind == "modality" and not caught.value.usage
  lines = enforce("a.nii", findings, force=True)
  assert len(lines) == 3 and all("\n" not in line and line.endswith(")") for line in lines)
  assert enforce("a.nii", []) == []


# --- real images --------------------------------------------------------------------------------
def hippocampus(real_data):
  """Volumes, and the plan and record of a training on others of the same dataset."""
  raw = read_msd(real_data / "hippocampus")
  volumes = [files.read_volume(case.image) for case in raw.cases[::4]]
  fields = [np.multiply(v.geometry.shape, v.spacing)[[2, 1, 0]] for v in volumes[1::2]]
  training = {"native_spacing": {"min": [1.0] * 3, "max": [1.0] * 3},
              "native_field": {"min": np.min(fields, 0), "max": np.max(fields, 0)},
              "oblique_degrees": {"max": [0.0]}}
  return volumes[::2], Plan("mr", (1.0, 1.0, 1.0), (40, 56, 40)), training


def test_real_mr_passes_and_real_ct_is_refused(real_data):
  volumes, plan, training = hippocampus(real_data)
  assert len(volumes) >= 20
  for known in (training, None):
    assert [kinds(volume, plan, known) for volume in volumes] == [[]] * len(volumes)
  root = real_data / "ct_sample"
  for path in (root / "ct.nii.gz", root / "ct_dicom"):
    found = kinds(files.read_volume(path), plan, training)
    assert found[0] == (REFUSE, "modality")


def test_real_ct_passes_and_real_mr_is_refused(real_data):
  root = real_data / "ct_sample"
  plan = Plan("ct", (3.0, 1.5, 1.5), (32, 128, 128), low=-100.0, high=250.0, mean=80.0, sd=60.0)
  training = {"native_spacing": {"min": [1.0, 0.6, 0.6], "max": [5.0, 1.0, 1.0]},
              "native_field": {"min": [200, 300, 300], "max": [600, 500, 500]},
              "oblique_degrees": {"max": [0.0]}}
  assert kinds(files.read_volume(root / "ct.nii.gz"), plan, None) == []
  # Pixels of 3 mm, while the largest trained ones are 1 mm.
  assert kinds(files.read_volume(root / "ct.nii.gz"), plan, training) == [(FLAG, "spacing")] * 2
  # Twenty slices of 2 mm are a fifth of the trained field: flagged, not refused.
  assert kinds(files.read_volume(root / "ct_dicom"), plan, training) == [(FLAG, "field")]
  for volume in hippocampus(real_data)[0]:
    assert kinds(volume, plan, training)[0] == (REFUSE, "modality")
