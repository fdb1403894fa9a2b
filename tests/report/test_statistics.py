"""Statistics of a case, compared with numpy for each mask and grid."""

import json

import numpy as np
import pytest

from condseg_jax.formats.files import read_label
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.geometry import Volume
from condseg_jax.report.statistics import label_statistics
from condseg_jax.report.statistics import structure_statistics
from condseg_jax.report.statistics import write_statistics

SHAPE = (7, 8, 9)
AFFINE = np.diag([-0.8, -0.7, 2.5, 1.0])
AFFINE[:3, 3] = 40, 30, -20
SHEARED = AFFINE @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0.2, 0, 1, 0], [0, 0, 0, 1.0]])
NAMES = {"liver": 1, "spleen": 2, "pancreas": 5, "absent": 4}


def label_map():
  label = np.zeros(SHAPE, np.uint8)
  label[2:5, 3:6, 2:7] = 1
  label[0, 1:4, 4] = 2
  label[3, 3, 4] = 5
  label[6, 7, 8] = 3  # a class that was not requested
  return label


def image(offset=0.0, affine=AFFINE):
  return Volume((np.random.default_rng(0).normal(size=SHAPE) * 20 + offset), affine)


@pytest.mark.parametrize("affine", [AFFINE, SHEARED], ids=["upright", "sheared"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_structure(affine, order):
  volume, label = image(affine=affine), np.asarray(label_map(), order=order)
  confidence = {name: 0.5 + value / 10 for name, value in NAMES.items()}
  found = label_statistics(volume, label, NAMES, confidence)
  assert list(found) == list(NAMES)
  for name, value in NAMES.items():
    mask = label == value
    entry = found[name]
    assert entry["voxels"] == mask.sum()
    assert entry["volume_ml"] == pytest.approx(mask.sum() * 0.8 * 0.7 * 2.5 / 1000)
    if name != "absent":
      assert entry["mean"] == pytest.approx(volume.array[mask].mean())
      assert entry["sd"] == pytest.approx(volume.array[mask].std())
      centre = np.append(np.argwhere(mask).mean(0), 1)
      assert entry["centroid_mm"] == pytest.approx((affine @ centre)[:3].tolist())
    assert entry["confidence"] == confidence[name]
    alone = structure_statistics(volume, mask, confidence[name])
    assert alone == {key: pytest.approx(value, nan_ok=False) if value is not None else None
                     for key, value in entry.items()}


def test_an_absent_structure_has_a_volume_and_no_mean():
  entry = label_statistics(image(), label_map(), NAMES)["absent"]
  assert entry == {"volume_ml": 0.0, "voxels": 0, "mean": None, "sd": None, "touches_border": False,
                   "centroid_mm": None, "confidence": None}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("end", [0, -1])
def test_at_the_border_a_structure_keeps_its_volume(axis, end):
  mask = np.zeros(SHAPE, bool)
  mask[3, 3, 3] = True
  assert not structure_statistics(image(), mask)["touches_border"]
  place = [3, 3, 3]
  place[axis] = end
  mask[tuple(place)] = True
  entry = structure_statistics(image(), mask)
  assert entry["touches_border"] and entry["voxels"] == 2
  assert entry["volume_ml"] == pytest.approx(2 * 0.8 * 0.7 * 2.5 / 1000)


def test_the_spread_survives_a_large_mean():
  volume = image(offset=1e7)
  entry = label_statistics(volume, label_map(), NAMES)["liver"]
  assert entry["sd"] == pytest.approx(volume.array[label_map() == 1].std(), rel=1e-6)


def test_pictures():
  picture = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
  mask = np.zeros((6, 7), bool)
  mask[2:4, 3:6] = True
  entry = structure_statistics(Volume(picture, np.eye(3)), mask)
  assert entry["area_px"] == 6 and "volume_ml" not in entry
  assert entry["mean"] == pytest.approx(picture[mask].mean())
  assert entry["centroid_px"] == [2.5, 4.0]


def test_the_file_holds_numbers_only(tmp_path):
  structures = label_statistics(image(), label_map(), NAMES)
  write_statistics(tmp_path / "a_statistics.json", image(), structures, ["is thin"])

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")
  tree = json.loads((tmp_path / "a_statistics.json").read_text(), parse_constant=refuse)
  assert tree["shape"] == list(SHAPE) and tree["spacing"] == [0.8, 0.7, 2.5]
  assert tree["findings"] == ["is thin"] and tree["unit"] == "mm"
  assert tree["classes"]["absent"]["mean"] is None
  for name, entry in tree["classes"].items():
    for key, value in entry.items():
      assert value == (pytest.approx(structures[name][key], rel=1e-5)
                       if structures[name][key] is not None else None)


def test_a_real_ct(real_data):
  root = real_data / "ct_sample"
  volume, label = read_nifti(root / "ct.nii.gz"), read_label(root / "ct_labels.nii.gz")
  found = label_statistics(volume, label.array, {"liver": 5, "left kidney": 3, "heart": 51})
  for name, value in (("liver", 5), ("left kidney", 3)):
    mask = label.array == value
    assert found[name]["volume_ml"] == pytest.approx(mask.sum() * 27 / 1000)
    assert found[name]["mean"] == pytest.approx(volume.array[mask].mean())
    assert 0 < found[name]["mean"] < 250
