"""The fingerprint says what the training cases are like, each case with the same weight."""

import json

import numpy as np
import pytest

from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import prepare
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from support.stored import write_arrays


def case(root, name, dataset, shape, value, count, split="train"):
  """A case whose positive voxels, `count` of them, all have one value."""
  image = np.zeros((*shape, 1), np.int16)
  mask = np.zeros((1, *shape), np.uint8)
  mask.flat[:count] = 1
  image.flat[:count] = value
  return write_arrays(root, name, image, mask, dataset=dataset, split=split, annotated=[dataset],
                      affine=np.diag([2.0, 1.0, 0.5, 1.0]), source="")


def test_sizes_spacings_and_intensities(tmp_path):
  cases = [case(tmp_path, "a", "liver", (4, 6, 8), 100, 3),
           case(tmp_path, "b", "liver", (6, 8, 10), 200, 90),
           case(tmp_path, "c", "spleen", (8, 4, 4), 300, 5),
           case(tmp_path, "d", "spleen", (40, 40, 40), 9999, 5, split="val")]
  tree = fingerprint(cases)
  assert json.loads(json.dumps(tree)) == tree
  assert tree["pooled"]["cases"] == 3 and set(tree["datasets"]) == {"liver", "spleen"}
  assert tree["pooled"]["annotated"] == ["liver", "spleen"]
  assert tree["pooled"]["shape"] == {"min": [4, 4, 4], "median": [6, 6, 8], "max": [8, 8, 10]}
  assert tree["pooled"]["native_spacing"]["median"] == [2.0, 1.0, 0.5]
  assert tree["pooled"]["native_field"]["max"] == [16, 8, 5]
  assert tree["pooled"]["oblique_degrees"]["max"] == [0.0]
  # Three positive voxels weigh as much as ninety.
  liver = tree["datasets"]["liver"]["intensity"]
  assert liver["mean"] == pytest.approx(150) and liver["sd"] == pytest.approx(50)
  assert (liver["p0.5"], liver["p99.5"]) == (100, 200)
  assert tree["pooled"]["intensity"]["mean"] == pytest.approx(200)
  assert tree["pooled"]["intensity"]["p50"] == 200


def test_nothing_positive_has_no_intensity(tmp_path):
  assert fingerprint([case(tmp_path, "a", "liver", (4, 4, 4), 1, 0)])["pooled"]["intensity"] is None


def test_it_lies_beside_the_store_and_knows_the_files(tmp_path):
  (tmp_path / "raw").mkdir()
  label = np.zeros((6, 8, 4), np.uint8)
  label[2:4, 2:4] = 1
  affine = np.diag([1.0, 1.5, 3.0, 1.0])
  write_nifti(tmp_path / "raw" / "i.nii", Volume(label.astype(np.int16) * 50, affine))
  write_nifti(tmp_path / "raw" / "l.nii", Volume(label, affine), label=True)
  (tmp_path / "raw" / "dataset.json").write_text(json.dumps(
      {"modality": {"0": "CT"}, "labels": {"1": "liver"},
       "training": [{"image": "i.nii", "label": "l.nii"}]}))
  store = prepare(read_msd(tmp_path / "raw"), tmp_path / "out", (1.0, 1.0, 1.0), progress=False)
  tree = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
  assert tree == fingerprint(store.cases)
  assert tree["pooled"]["native_shape"]["max"] == [4, 8, 6]
  assert tree["pooled"]["native_spacing"]["max"] == [3.0, 1.5, 1.0]
  assert tree["pooled"]["shape"]["max"] == [12, 12, 6]
