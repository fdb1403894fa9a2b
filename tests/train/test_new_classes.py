"""New classes beside known ones: the table, what they begin with, what a record says of both."""

import dataclasses

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.data.fingerprint import joined
from condseg_jax.models.class_axes import ClassAxes
from condseg_jax.train.new_classes import grown
from condseg_jax.train.new_classes import with_means


def test_their_table_stays_and_new_classes_follow():
  theirs = ClassTable.create(["liver", "spleen"], presets={"both": ["liver", "spleen"]},
                             colors={"liver": (1, 2, 3)}, overlapping=[("liver", "spleen")])
  ours = ClassTable.create(["left kidney", "spleen"], no_mirror={"left kidney": ["W"]})
  # As if the hash of the new class were that of a known one, which keeps its code.
  ours = dataclasses.replace(ours, classes=(
      dataclasses.replace(ours.classes[0], code=theirs.classes[0].code), ours.classes[1]))
  table = grown(ours, theirs)
  assert table.names == ("liver", "spleen", "left kidney")
  assert table.classes[:2] == theirs.classes and table.presets == theirs.presets
  assert table.overlapping == theirs.overlapping and table.classes[2].no_mirror == ("W",)
  assert len(set(table.colors)) == 3
  assert np.diff(np.sort(table.codes)).min() >= 1 / (2 * table.capacity) - 1e-6
  assert grown(theirs, theirs) == theirs
  full = ClassTable.create([f"c{i}" for i in range(64)])
  assert grown(ours, full).capacity == 66
  assert ClassTable.from_json(table.to_json()) == table


def test_new_classes_begin_as_the_mean_of_the_known_ones_and_decoders_at_random():
  variables = {"params": {
      "head": {"kernel": np.array([[9.0, 1, 2, 7], [9.0, 3, 6, 7]], np.float32)},
      "decoders": {"each": np.array([1.0, 2, 7], np.float32)}, "stem": np.float32([5.0])}}
  axes = ClassAxes(3, {"params/head/kernel": 1, "params/decoders/each": 0})
  made = with_means(variables, axes, [2], [0, 1])["params"]
  np.testing.assert_array_equal(made["head"]["kernel"], [[9, 1, 2, 1.5], [9, 3, 6, 4.5]])
  np.testing.assert_array_equal(made["decoders"]["each"], [1, 2, 7])
  np.testing.assert_array_equal(made["stem"], [5])
  assert variables["params"]["head"]["kernel"][0, 3] == 7  # nothing was written in place


def test_a_record_speaks_of_both_sets_of_cases():
  spread = lambda low, middle, high: {"min": [low], "median": [middle], "max": [high]}
  one = {"cases": 3, "annotated": ["liver"], "native_spacing": spread(1.0, 2.0, 3.0),
         "intensity": {"p0.5": -10.0, "mean": 4.0}}
  other = {"cases": 1, "annotated": ["cyst", "liver"], "native_spacing": spread(0.5, 1.0, 2.0),
           "intensity": {"p0.5": -30.0, "mean": 0.0}}
  both = joined(one, other)
  assert both["cases"] == 4 and both["annotated"] == ["liver", "cyst"]
  assert both["native_spacing"] == spread(0.5, 1.75, 3.0)
  assert both["intensity"] == {"p0.5": pytest.approx(-15.0), "mean": pytest.approx(3.0)}
  assert joined(one, {**other, "intensity": None})["intensity"] == one["intensity"]
