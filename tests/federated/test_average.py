"""The mean of the sites' parameters: closed forms, and what is left out of it."""

import numpy as np
import pytest

from condseg_jax.federated.average import average
from condseg_jax.federated.average import fault
from condseg_jax.federated.average import Update
from condseg_jax.models.class_axes import ClassAxes

NAMES = ("liver", "spleen", "cyst")
# A layer that all classes share, and one whose input is a feature followed by a one-hot vector.
BEFORE = {"params/conv/kernel": np.zeros((2, 2), np.float32),
          "params/head/kernel": np.zeros((4, 2), np.float32)}
AXES = ClassAxes(3, {"params/head/kernel": 0})


def update(value, **samples) -> Update:
  return Update({name: np.full_like(array, value) for name, array in BEFORE.items()}, samples,
                dict.fromkeys(samples, 0.5))


def test_samples_are_weights_and_a_class_is_averaged_where_it_is_annotated():
  found = average(BEFORE, {"a": update(1.0, liver=30), "b": update(2.0, spleen=10)}, AXES, NAMES)
  np.testing.assert_allclose(found["params/conv/kernel"], 1.25)
  feature, liver, spleen, cyst = found["params/head/kernel"]
  np.testing.assert_allclose(feature, 1.25)
  np.testing.assert_array_equal(liver, 1.0)
  np.testing.assert_array_equal(spleen, 2.0)
  np.testing.assert_array_equal(cyst, 0.0)  # nobody has samples: as before
  assert all(array.dtype == np.float32 for array in found.values())


def test_a_site_of_several_classes_counts_for_each():
  sites = {"a": update(1.0, liver=10, spleen=10), "b": update(4.0, liver=30)}
  found = average(BEFORE, sites, AXES, NAMES)
  np.testing.assert_allclose(found["params/conv/kernel"], (20 * 1 + 30 * 4) / 50)
  np.testing.assert_allclose(found["params/head/kernel"][1], (10 * 1 + 30 * 4) / 40)
  np.testing.assert_array_equal(found["params/head/kernel"][2], 1.0)


def test_equal_sites_change_nothing_and_one_site_is_copied_bit_by_bit():
  values = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
  one = Update({**BEFORE, "params/head/kernel": values}, {"liver": 7}, {"liver": 1.0})
  for sites in ({"a": one}, {"a": one, "b": one}):
    found = average(BEFORE, sites, AXES, NAMES)
    np.testing.assert_array_equal(found["params/head/kernel"][:2], values[:2])


GOOD = update(1.0, liver=3)


@pytest.mark.parametrize(("bad", "reason"), [
    (Update({}, {"liver": 3}, {}), "another network"),
    (Update(GOOD.arrays | {"params/conv/kernel": np.full((2, 2), np.nan, np.float32)},
            {"liver": 3}, {}), "params/conv/kernel is not finite"),
    (Update(GOOD.arrays | {"params/conv/kernel": np.zeros((2, 3), np.float32)}, {"liver": 3}, {}),
     "another shape"),
    (Update(GOOD.arrays | {"params/conv/kernel": np.zeros((2, 2), np.float64)}, {"liver": 3}, {}),
     "another shape or type"),
    (Update(GOOD.arrays | {"params/conv/kernel": [[0.0, 0.0]] * 2}, {"liver": 3}, {}),
     "another shape or type"),
    (Update(GOOD.arrays, {"kidney": 3}, {}), "numbers of samples"),
    (Update(GOOD.arrays, {"liver": -3}, {}), "numbers of samples"),
    (Update(GOOD.arrays, {"liver": 1.5}, {}), "numbers of samples"),
    (Update(GOOD.arrays, {"liver": 0}, {}), "not learned from a sample"),
    (Update(GOOD.arrays, {"liver": 3}, {"liver": np.nan}), "Dice"),
    (Update(GOOD.arrays, {"liver": 3}, {"kidney": 0.5}), "Dice"),
])
def test_what_is_left_out(bad, reason):
  assert fault(GOOD, BEFORE, NAMES) == ""
  assert reason in fault(bad, BEFORE, NAMES)
