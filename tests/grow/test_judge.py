"""What a level is judged by: differences by hand, agreement, and the climb from level to level."""

import dataclasses
import types

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.classes import UNLABELLED
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.geometry import Volume
from condseg_jax.grow import judge
from condseg_jax.grow import ladder
from condseg_jax.grow.judge import compared
from condseg_jax.grow.judge import Row
from condseg_jax.grow.judge import worst


def test_classes_are_compared_case_by_case():
  before = {"new": {"cyst": {}}, "old": {"liver": {"a": 0.9, "b": 0.8, "gone": 0.1}}}
  after = {"new": {"cyst": {"x": 0.5, "y": 0.7}},
           "old": {"liver": {"a": 0.89, "b": 0.79, "new": 0.2}}}
  cyst, liver = compared(before, after)
  assert (cyst.before, cyst.cases, cyst.loss) == (None, 2, 0.0) and cyst.after == pytest.approx(0.6)
  assert cyst.low == 0.5 and cyst.high == 0.7
  # Every case loses a point, so that no resample says anything else.
  assert (liver.cases, liver.low, liver.high) == (2, *[pytest.approx(-0.01)] * 2)
  assert liver.before == pytest.approx(0.85) and liver.loss == pytest.approx(0.01)
  assert worst([cyst, liver]) is liver
  assert "liver loses 1.0 points of Dice [1.0, 1.0] on 2 old cases" in ladder.describe(liver)


def test_half_a_point_is_not_too_much():
  row = lambda loss: Row("liver", "old", 3, 0.9, 0.9 - loss, 0.0, 0.0)
  assert worst([row(0.0049), row(-0.2)]) is None
  assert worst([row(0.0051), row(0.02)]).loss == pytest.approx(0.02)
  assert worst([]) is None


def test_giving_up_voxels_of_an_annotated_class_is_no_disagreement():
  """Unless the two may overlap."""
  found = np.array([[1, 1, 1, 0]], bool)
  truth = {"cyst": np.array([[1, 0, 0, 0]], np.uint8)}
  before = types.SimpleNamespace(predict=lambda _: types.SimpleNamespace(
      masks={"liver": found, "spleen": found}))
  table = ClassTable.create(["liver", "spleen", "cyst"], overlapping=[("cyst", "spleen")])
  case = LabelledCase("x", lambda: (Volume(np.zeros((1, 4)), np.eye(3)), truth))
  growth = types.SimpleNamespace(table=table)
  made = judge._agreement(case, before, growth, ("liver", "spleen"))
  _, masks = made.read()
  np.testing.assert_array_equal(masks["liver"], [[UNLABELLED, 1, 1, 0]])
  np.testing.assert_array_equal(masks["spleen"], [[1, 1, 1, 0]])
  assert made.annotated == ("liver", "spleen")


@dataclasses.dataclass
class Growth:
  """As much of a growth as the climb looks at."""
  order: tuple = (2, 1, 0)
  source: str = "RUN"
  new: tuple = ("cyst",)


# attempt → Dice of the new class and of the known one, which had 0.9; then the level that is taken,
# how far it was gone, and the attempts
CLIMBS = {
    "the highest": ({"2": (0.8, 0.897)}, 2, 1.0, 1),
    "part of the way": ({"2": (0.8, 0.89), "2 at 0.85": (0.7, 0.896)}, 2, 0.85, 2),
    "the level below": ({"2": (0.8, 0.87), "2 at 0.85": (0.7, 0.88), "2 at 0.7": (0.3, 0.89),
                         "1": (0.5, 0.9)}, 1, 1.0, 4),
    "over a level that finds nothing": ({"2": (0.0, 0.9), "1": (0.5, 0.9)}, 1, 1.0, 2),
    "to nothing": ({"2": (0.8, 0.8), "2 at 0.85": (0.7, 0.8), "2 at 0.7": (0.3, 0.8),
                    "1": (0.5, 0.89), "0": (0.004, 0.9)}, None, 1.0, 5)}


@pytest.fixture
def climb(monkeypatch, tmp_path):
  """Tries levels whose scores are given; returns outcome, attempts, levels written."""
  def climbed(scores, level=None):
    tried, trained, written = [], [], []
    as_scores = lambda new, old: {"new": {"cyst": {} if new is None else {"x": new}},
                                  "old": {"liver": {"a": old}}}

    def score(network):
      if network == "RUN":
        return as_scores(None, 0.9)
      tried.append(network)
      return as_scores(*scores[network])
    monkeypatch.setattr(ladder, "_begun", lambda *_: {"levels": {}})
    monkeypatch.setattr(ladder, "_bare", lambda source: source)
    monkeypatch.setattr(ladder, "_between", lambda _, workdir, share: (
        workdir.name if share == 1 else f"{workdir.name} at {share:g}"))
    monkeypatch.setattr(ladder.Judge, "of", lambda *_: types.SimpleNamespace(scores=score))
    monkeypatch.setattr(ladder, "_train", lambda _, k, *more: trained.append(k) or "finished")
    monkeypatch.setattr(ladder, "write_result", lambda *args: written.append(args[3:5]))
    outcome = ladder.grow(Growth(), tmp_path, level=level)
    assert trained == list(dict.fromkeys(int(name[0]) for name in tried))
    return outcome, tried, written
  return climbed


@pytest.mark.parametrize("name", CLIMBS)
def test_the_highest_level_that_is_allowed(name, climb):
  scores, taken, share, count = CLIMBS[name]
  outcome, tried, written = climb(scores)
  assert outcome.taken == taken and outcome.share == share and tried == list(scores)
  assert len(outcome.reasons) == count - (taken is not None)
  assert written == ([] if taken is None else [(taken, share)])


def test_a_level_that_was_asked_for_is_taken_and_its_cost_is_said(climb):
  outcome, tried, written = climb({"1": (0.2, 0.8)}, level=1)
  assert outcome.taken == 1 and tried == ["1"] and written == [(1, 1.0)]
  assert "liver loses 10.0 points of Dice" in outcome.reasons["level 1"]
