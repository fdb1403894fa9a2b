"""Which image comes next: gains by hand, and an order that avoids repetition."""

import numpy as np
import pytest

from condseg_jax.evaluate.next_images import gains
from condseg_jax.evaluate.next_images import Known
from condseg_jax.evaluate.next_images import known_classes
from condseg_jax.evaluate.next_images import order
from condseg_jax.evaluate.next_images import to_json


def test_what_training_knew():
  scores = {"dice": {"a": {"liver": 0.9}, "b": {"liver": 0.8}, "c": {"spleen": None},
                     "d": {"spleen": 0.7}}}
  assert known_classes(scores, ["liver", "spleen", "gallbladder"]) == {
      "liver": Known(2, 1.0), "spleen": Known(1, 0.5), "gallbladder": Known(1, 1.0)}
  assert known_classes({}, ["liver"]) == {"liver": Known(1, 1.0)}


def test_a_gain_is_the_error_by_the_number_of_cases():
  known = {"liver": Known(10, 1.0), "spleen": Known(2, 0.5), "kidney": Known(4, 1.0)}
  quality = {"liver": {"soft_dice": 0.99, "predicted_dice": 0.8}, "kidney": {"soft_dice": 0.6}}
  assert gains(quality, known) == pytest.approx(
      {"liver": 0.2 / 10, "spleen": 0.5 / 2, "kidney": 0.4 / 4})


def one_class(**total):
  return {name: {"liver": value} for name, value in total.items()}


def test_where_all_images_differ_alike_the_gain_decides():
  """Corners of a simplex are at equal distances."""
  corners = dict(zip("abcd", np.eye(4).tolist(), strict=True))
  rows = order(one_class(a=0.1, b=0.4, c=0.2, d=0.3), corners)
  assert [row.name for row in rows] == ["b", "d", "c", "a"]
  assert [row.gain for row in rows] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_an_image_like_one_before_comes_late():
  features = {"a": [0.0, 0.0], "twin": [0.0, 0.0], "far": [9.0, 1.0], "near": [1.0, 0.0]}
  rows = order(one_class(a=0.5, twin=0.49, far=0.3, near=0.2), features)
  assert [row.name for row in rows] == ["a", "far", "near", "twin"]
  assert rows[-1].value == 0 and rows[0].value == 0.5


def test_units_of_features_and_order_of_images_do_not_matter():
  rng = np.random.default_rng(0)
  features = {f"{n}": rng.normal(size=3) for n in range(8)}
  parts = one_class(**{name: rng.uniform() for name in features})
  expected = order(parts, features)
  scaled = {name: value * [1, 100, 0.01] + [5, 0, 1] for name, value in features.items()}
  found = order(dict(reversed(parts.items())), scaled)
  assert [row.name for row in found] == [row.name for row in expected]


def test_alike_images_are_ordered_by_gain():
  rows = order(one_class(a=0.1, b=0.3, c=0.2), dict.fromkeys("abc", [1.0, 2.0]))
  assert [row.name for row in rows] == ["b", "c", "a"]
  assert order({}, {}) == []


def test_the_class_with_most_of_the_gain_is_named():
  row, = order({"a": {"liver": 0.1, "spleen": 0.2}}, {"a": [1.0]})
  assert row.class_name == "spleen"
  assert to_json([row]) == {"images": [{"name": "a", "value": row.value, "gain": row.gain,
                                        "class": "spleen"}]}
