"""Post-processing is chosen where it helps, and left out where it does not."""

import types

import numpy as np
import pytest

from condseg_jax.evaluate.postprocess_tuning import Candidates
from condseg_jax.evaluate.postprocess_tuning import choose
from condseg_jax.geometry import Volume
from condseg_jax.infer.postprocess import ComponentFilter

LARGEST, SMALL = ComponentFilter(largest=True), ComponentFilter(minimum_ml=0.002)


def trial(found, truth, smallest=0.004):
  trials = Candidates({"liver": smallest})
  volume = Volume(np.zeros(found.shape, np.float32), np.eye(4))  # voxels of 0.001 ml
  prediction = types.SimpleNamespace(masks={"liver": found.astype(bool)})
  trials.on_case("a", volume, prediction, {"liver": truth.astype(np.uint8), "spleen": truth}, [])
  return {cleaning: dice for _, cleaning, dice in trials.rows}


def test_every_candidate_is_scored_against_the_truth():
  """Truth: 8 voxels. Found: those, a piece of 3 and one of 1: 16 / 20, 16 / 16 and 16 / 19."""
  truth = np.zeros((6, 6, 6))
  truth[:2, :2, :2] = 1
  found = truth.copy()
  found[5, 5, 3:6] = found[5, 0, 0] = 1
  assert trial(found, truth) == {ComponentFilter(): pytest.approx(16 / 20), LARGEST: 1.0,
                                 SMALL: pytest.approx(16 / 19)}


def test_two_true_pieces_are_left_alone_and_a_small_gain_is_none():
  rows = [("kidneys", ComponentFilter(), 0.9), ("kidneys", LARGEST, 0.5),
          ("liver", ComponentFilter(), 0.9), ("liver", LARGEST, 0.9019),
          ("spleen", ComponentFilter(), 0.8), ("spleen", LARGEST, 0.81), ("spleen", SMALL, 0.85)]
  assert choose(rows) == {"spleen": SMALL}


def test_cases_without_the_class_have_no_say():
  rows = [("liver", ComponentFilter(), np.nan), ("liver", LARGEST, np.nan),
          ("liver", ComponentFilter(), 0.5), ("liver", LARGEST, 0.6),
          ("spleen", ComponentFilter(), np.nan), ("spleen", LARGEST, np.nan)]
  assert choose(rows) == {"liver": LARGEST}
