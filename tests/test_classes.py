"""Names to codes, tables of classes, and masks as one label map."""

import json

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.classes import checked_name
from condseg_jax.classes import ClassTable
from condseg_jax.classes import distinct_codes
from condseg_jax.classes import hash_code
from condseg_jax.classes import jenkins_hash
from condseg_jax.errors import InputError

CITYSCAPES = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light",
              "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
              "bus", "train", "motorcycle", "bicycle")


def smallest_gap(codes):
  return min(np.diff(np.sort(codes)))


def test_published_values_of_the_hash():
  assert jenkins_hash("a") == 0xCA2E9442
  assert jenkins_hash("The quick brown fox jumps over the lazy dog") == 0x519E91F5


def test_spleen_and_pancreas_collide_and_are_told_apart():
  names = ("liver", "spleen", "pancreas")
  assert abs(hash_code("spleen") - hash_code("pancreas")) < 1 / 128
  codes = distinct_codes(names, 64)
  assert codes[:2] == (hash_code("liver"), hash_code("spleen"))
  assert codes[2] == hash_code("pancreas#1")
  assert smallest_gap(codes) >= 1 / 128


def test_cityscapes_names_are_told_apart():
  table = ClassTable.create(CITYSCAPES)
  assert smallest_gap(table.codes.astype(np.float64)) >= 1 / 128 - 1e-7
  assert table.codes.dtype == np.float32 and len(set(table.codes.tolist())) == 19


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=64, unique=True))
def test_any_names_up_to_the_capacity_are_told_apart(names):
  codes = distinct_codes(names, 64)
  assert all(-1 <= code <= 1 for code in codes)
  if len(codes) > 1:
    assert smallest_gap(codes) >= 1 / 128
  # A class that comes later never changes the code of an earlier one.
  assert distinct_codes(names[:-1], 64) == codes[:-1]


def test_codes_are_read_back_and_never_computed_again():
  table = ClassTable.create(["liver", "left kidney"], presets={"both": ["Liver", "left kidney"]},
                            no_mirror={"left kidney": ["W"]}, colors={"liver": [1, 2, 3]})
  tree = table.to_json()
  assert ClassTable.from_json(json.loads(json.dumps(tree))) == table
  tree["classes"][0]["code"] = 0.125
  assert ClassTable.from_json(tree).codes[0] == np.float32(0.125)


def test_choosing_classes():
  table = ClassTable.create(["liver", "spleen", "pancreas"], presets={"two": ["pancreas", "liver"]})
  assert table.select() == (0, 1, 2)
  assert table.select(["SPLEEN ", "spleen"]) == (1,)
  assert table.select(preset="two") == (2, 0)
  assert table.select(preset="TWO") == (2, 0)
  # A table that was stored with capitals answers all the same.
  stored = table.to_json() | {"presets": {"Two": ["pancreas", "liver"]}}
  assert ClassTable.from_json(stored).select(preset="two") == (2, 0)
  for wrong in (dict(names=["heart"]), dict(preset="all")):
    with pytest.raises(InputError) as error:
      table.select(**wrong)
    assert error.value.usage


@pytest.mark.parametrize("names", [["liver", "Liver"], ["liver", " "], [],
                                   [str(i) for i in range(65)]])
def test_names_that_make_no_table(names):
  with pytest.raises(InputError):
    ClassTable.create(names)


@pytest.mark.parametrize("settings", [
    dict(presets={"abdomen": ["liver", "heart"]}), dict(presets={"nothing": []}),
    dict(no_mirror={"liver": ["w"]}), dict(no_mirror={"liver": ["X"]})])
def test_settings_that_would_have_no_effect_are_errors(settings):
  with pytest.raises(InputError) as error:
    ClassTable.create(["liver", "spleen"], **settings)
  assert error.value.usage


@pytest.mark.parametrize("name", [
    "", " ", "a\nb", "a\0", "\x1b[31m", "a\udce9", "a\u2028b", "a/b", "../a", "..", "x" * 101, None,
    5, ["liver"]])
def test_names_that_no_file_or_line_can_hold(name):
  with pytest.raises(InputError, match="labels.json: class name ") as caught:
    checked_name(name, "labels.json")
  assert len(str(caught.value)) < 200
  tree = ClassTable.create(["liver"]).to_json()
  tree["classes"][0]["name"] = name
  with pytest.raises(InputError, match="class name"):
    ClassTable.from_json(tree)
  if isinstance(name, str):
    with pytest.raises(InputError):
      ClassTable.create([name])


@pytest.mark.parametrize("name", ["Left Kidney", "größe", "肝臓", r"a$\frac{x$", "a..b", "x" * 100,
                                  "<b>", "%s", "a_b-c.d (1)"])
def test_names_of_any_script_and_signs(name):
  assert checked_name(f" {name} ", "labels.json") == name.lower()
  table = ClassTable.create([name])
  assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_a_stored_table_has_each_name_once():
  tree = ClassTable.create(["liver", "spleen"]).to_json()
  tree["classes"][1]["name"] = "liver"
  with pytest.raises(InputError, match="the same name: liver"):
    ClassTable.from_json(tree)


def test_names_ignore_case_wherever_they_come_from():
  table = ClassTable.create([" Liver", "SPLEEN"], presets={"both": ["LIVER", "Spleen"]},
                            colors={"LIVER": (1, 2, 3)}, no_mirror={"Spleen": ("W",)})
  assert table.names == ("liver", "spleen") and table.index("sPLEEN ") == 1
  assert table.colors[0] == (1, 2, 3) and table.classes[1].no_mirror == ("W",)
  assert table.codes[0] == np.float32(hash_code("liver"))


def test_every_class_has_a_colour_of_its_own():
  table = ClassTable.create([f"class {i}" for i in range(64)])
  assert len(set(table.colors)) == 64
  assert all(0 <= x <= 255 for color in table.colors for x in color)


def test_beta_is_one_for_annotated_classes_only():
  table = ClassTable.create(["liver", "spleen", "pancreas"])
  np.testing.assert_array_equal(table.beta(["Pancreas", "liver"]), [1, 0, 1])
  np.testing.assert_array_equal(table.beta([]), [0, 0, 0])
  assert table.beta([]).dtype == np.float32


# --- which classes exclude each other -----------------------------------------------------------
def test_classes_exclude_each_other_unless_declared_otherwise():
  table = ClassTable.create(["liver", "tumour", "spleen"], overlapping=[("Tumour", "liver")])
  assert table.overlapping == (("liver", "tumour"),)
  np.testing.assert_array_equal(table.exclusive, [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
  assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
  former = table.to_json()
  del former["overlapping"]
  assert ClassTable.from_json(former).overlapping == ()


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda p: p[0] != p[1])))
def test_the_matrix_is_symmetric_and_lacks_the_pairs_alone(pairs):
  names = ["a", "b", "c", "d", "e", "f"]
  table = ClassTable.create(names, overlapping=[(names[i], names[j]) for i, j in pairs])
  expected = ~np.eye(6, dtype=bool)
  for i, j in pairs:
    expected[i, j] = expected[j, i] = False
  np.testing.assert_array_equal(table.exclusive, expected)


def test_an_overlap_with_an_unknown_class():
  with pytest.raises(InputError, match="overlapping: unknown class 'tumor'") as caught:
    ClassTable.create(["liver", "tumour"], overlapping=[("liver", "tumor")])
  assert caught.value.usage
