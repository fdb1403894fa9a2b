"""From labelled files to rows of scores: the right mask, on its own grid, in mm."""

import types

import numpy as np

from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.raw_cases import labelled_cases
from condseg_jax.evaluate.run import evaluate
from condseg_jax.geometry import Volume
from support.tiny import case
from support.tiny import ORGANS
from support.tiny import write_msd


def test_rows_are_of_their_class_in_the_mm_of_the_file():
  """A liver that is one voxel, 5 mm, off along the last axis; a spleen that is right."""
  truth = {name: np.zeros((6, 7, 8), np.uint8) for name in ("liver", "spleen", "heart")}
  truth["liver"][1:4, 1:5, 2], truth["spleen"][1:3, 1:3, 5:7] = 1, 1
  found = {"liver": np.roll(truth["liver"], 1, 2) == 1, "spleen": truth["spleen"] == 1}
  fake = types.SimpleNamespace(predict=lambda volume, fusion: types.SimpleNamespace(masks=found))
  volume = Volume(np.zeros((6, 7, 8)), np.diag([1.0, 2.0, 5.0, 1.0]))
  rows = evaluate(fake, [LabelledCase("x", lambda: (volume, truth))], tolerance_mm=4.9)
  scores = {row.class_name: row.metrics for row in rows}
  assert set(scores) == {"liver", "spleen"}  # of the heart the network says nothing
  assert scores["spleen"]["dice"] == 1 and scores["liver"]["dice"] == 0
  assert scores["liver"]["hd95"] == 5 and scores["liver"]["surface_dice"] == 0
  assert scores["liver"]["truth_volume_ml"] == 3 * 4 * 10 / 1000


def test_a_raw_case_keeps_its_classes(tmp_path):
  """Listed in another order than their values."""
  write_msd(tmp_path / "d", [8], ["box", "ball"])
  (only,), split = labelled_cases(tmp_path / "d")
  volume, truth = only.read()
  _, label = case(np.random.default_rng((0, 8)))
  assert set(only.annotated) == set(truth) == set(ORGANS) and split == "all"
  for name, value in ORGANS.items():
    assert (label == value).any()
    np.testing.assert_array_equal(truth[name], label == value)
  assert volume.array.shape == label.shape
