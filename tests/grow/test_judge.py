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
  levels: tuple = (0, 1, 2)
  source: str = "RUN"
  new: tuple = ("cyst",)


# new class, known class at every level → the level taken, the levels tried
CLIMBS = {
    "all of them": ([(0.2, 0.9), (0.5, 0.9), (0.7, 0.898)], 2, 3),
    "until nothing is gained": ([(0.2, 0.9), (0.203, 0.9), (0.9, 0.9)], 0, 2),
    "back from a level that costs too much": ([(0.2, 0.9), (0.5, 0.9), (0.9, 0.88)], 1, 3),
    "over a level that costs too much": ([(0.2, 0.8), (0.5, 0.9), (0.502, 0.9)], 1, 3),
    "over a level that finds nothing": ([(0.0, 0.9), (0.5, 0.9), (0.4, 0.9)], 1, 3),
    "to nothing": ([(0.2, 0.8), (0.5, 0.8), (0.9, 0.8)], None, 3)}


@pytest.fixture
def climb(monkeypatch, tmp_path):
  """Climbs over levels whose scores are given; returns outcome, levels tried, levels written."""
  def climbed(scores, level=None, levels=(0, 1, 2)):
    tried, written = [], []
    as_scores = lambda new, old: {"new": {"cyst": {} if new is None else {"x": new}},
                                  "old": {"liver": {"a": old}}}
    sources = {"RUN": as_scores(None, 0.9),
               **{str(tmp_path / "levels" / str(k)): as_scores(*pair)
                  for k, pair in enumerate(scores)}}
    monkeypatch.setattr(ladder, "_begun", lambda *_: {"levels": {}})
    monkeypatch.setattr(ladder, "_bare", lambda source: source)
    monkeypatch.setattr(ladder.Judge, "of", lambda *_: types.SimpleNamespace(scores=sources.get))
    monkeypatch.setattr(ladder, "_train", lambda _, k, *more: tried.append((k, more[0]))
                        or "finished")
    monkeypatch.setattr(ladder, "write_result", lambda *args: written.append(args[3]))
    outcome = ladder.grow(Growth(levels), tmp_path, level=level)
    return outcome, tried, written
  return climbed


@pytest.mark.parametrize("name", CLIMBS)
def test_the_climb(name, climb, tmp_path):
  scores, taken, count = CLIMBS[name]
  outcome, tried, written = climb(scores)
  assert outcome.taken == taken and [k for k, _ in tried] == list(range(count))
  assert written == ([] if taken is None else [taken])
  # Each level begins where the one before it ended.
  assert [source for _, source in tried] == ["RUN", *(str(tmp_path / "levels" / str(k))
                                                      for k in range(count - 1))]


def test_a_level_that_was_asked_for_is_taken_and_its_cost_is_said(climb):
  outcome, tried, written = climb([(0.2, 0.8)] * 3, level=1)
  assert outcome.taken == 1 and tried == [(1, "RUN")] and written == [1]
  assert "liver loses 10.0 points of Dice" in outcome.reasons[1]
