"""A network that is scored on a class that it does not know."""

import types

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.geometry import Volume
from condseg_jax.infer.prediction import Prediction
from condseg_jax.study.score import score
from condseg_jax.study.unaware import aware

LIVER = np.array([[1, 1, 0, 0]], np.uint8)
CYST = np.array([[0, 0, 1, 1]], np.uint8)


def known():
  volume = Volume(np.zeros((1, 4), np.float32), np.eye(3))
  found = Prediction(Volume(LIVER, np.eye(3)), {"liver": 1}, {"liver": LIVER == 1}, {"liver": 1.0})
  predictor = types.SimpleNamespace(table=ClassTable.create(["liver"]), step=7,
                                    predict=lambda _, **__: found)
  case = LabelledCase("x", lambda: (volume, {"liver": LIVER, "cyst": CYST}), ("liver", "cyst"))
  return predictor, case


def test_it_never_finds_it_and_finds_the_others_as_before():
  predictor, case = known()
  found = aware(predictor, [case])
  assert found.table.names == ("liver", "cyst") and found.step == 7
  scores = score(found, [case], fusion="argmax")
  assert scores["classes"] == ["liver", "cyst"]
  assert scores["dice"] == [[1.0, 0.0]] and scores["fn"] == [[0, 2]] and scores["tp"] == [[2, 0]]
  # True liver is found as liver; the cyst, and nothing else, as no class.
  np.testing.assert_array_equal(scores["confusion"][""], [[2, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_a_network_that_knows_all_is_left_alone():
  predictor, case = known()
  liver = LabelledCase("x", case.read, ("liver",))
  assert aware(predictor, [liver]) is predictor
