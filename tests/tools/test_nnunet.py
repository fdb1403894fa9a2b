"""What nnU-Net gets to train on, and how its networks are scored; it is not run here."""

import json

import numpy as np
import pytest

from condseg_jax.classes import POSITIVE
from condseg_jax.datasets.discover import discover
from condseg_jax.datasets.discover import reader
from support.tiny import write_datasets
from tools.benchmark.nnunet import __main__ as nnunet


def test_every_class_is_a_dataset_of_its_own(tmp_path):
  root = write_datasets(tmp_path / "data")
  training, test = discover(root / "train"), discover(root / "test")
  peer = nnunet.Peer(tmp_path, 10)
  names, truths = peer.write_datasets(training, test)
  assert names == ["ball", "box"]
  written = [reader("nnunet")(path) for path in sorted((tmp_path / "nnUNet_raw").iterdir())]
  assert [folder.classes for folder in written] == [("ball",), ("box",)]
  originals = {case.id: case for folder in training for case in folder.cases}
  for case in (case for folder in written for case in folder.cases):
    (image, masks), (same, theirs) = case.read(), originals[case.id].read()
    np.testing.assert_array_equal(image.array, same.array)
    np.testing.assert_allclose(image.affine, same.affine)
    np.testing.assert_array_equal(masks, theirs)
  assert sorted(truths) == ["case_08", "case_09"]
  assert sorted(p.name for p in (tmp_path / "test").iterdir()) == [
      "case_08_0000.nii.gz", "case_09_0000.nii.gz"]
  perfect = {case: (masks["ball"] == POSITIVE) + 2 * (masks["box"] == POSITIVE)
             for case, masks in truths.items()}
  assert nnunet._dice(names, truths, perfect) == {"ball": 1.0, "box": 1.0}
  swapped = {case: label[::-1] for case, label in perfect.items()}
  assert nnunet._dice(names, truths, swapped)["ball"] < 1


def test_all_labels_where_the_data_have_them(real_data, tmp_path):
  folders = discover(real_data / "hippocampus")
  peer = nnunet.Peer(tmp_path, 10)
  names, truths = peer.write_datasets(folders, folders)
  assert names == ["anterior", "posterior"] and len(truths) == 40
  counts = [json.loads((path / "dataset.json").read_text())["numTraining"]
            for path in sorted((tmp_path / "nnUNet_raw").iterdir())]
  assert counts == [80, 80, 160]


def test_the_ratio_is_above_one_where_we_are_ahead():
  row = nnunet._row("a", {"ball": 0.9, "box": 0.7},
                    {"dice": {"ball": 0.5, "box": 0.3}, "steps": [7]})
  assert row["ours"] == pytest.approx(0.8) and row["ratio"] == pytest.approx(2.0)
  assert nnunet._row("a", {"ball": 0.9}, None)["ratio"] is None
