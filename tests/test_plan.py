"""One plan for all datasets: what is pooled, what is not, and how images are normalised."""

import json

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.plan import fit_subvolume
from condseg_jax.plan import MIN_FEATURES
from condseg_jax.plan import Plan
from condseg_jax.plan import pooled_spacing
from condseg_jax.plan import pooling_strides
from condseg_jax.plan import same_spacing

SPACING, SUBVOLUME = (2.5, 1.0, 1.0), (16, 32, 32)


def pooled(foreground, modality="ct"):
  return Plan.pooled(modality, SPACING, SUBVOLUME, foreground)


def statistics(plan):
  return plan.low, plan.high, plan.mean, plan.sd


def random_cases(seed=0, count=5, size=200):
  rng = np.random.default_rng(seed)
  return [rng.integers(-200, 300, size).astype(np.int16) for _ in range(count)]


def test_percentiles_mean_and_sd_of_the_pooled_foreground():
  cases = random_cases()
  plan, values = pooled(cases), np.concatenate(cases).astype(np.float64)
  low, high = np.percentile(values, [0.5, 99.5], method="hazen")
  clipped = np.clip(values, low, high)
  np.testing.assert_allclose(statistics(plan), [low, high, clipped.mean(), clipped.std()],
                             rtol=1e-9)


def test_every_case_has_the_same_weight_whatever_its_size():
  """Two cases of one value each, 7 and 4000 voxels: mean (a + b) / 2, sd |a - b| / 2."""
  plan = pooled([np.full(7, 10.0), np.full(4000, 70.0)])
  np.testing.assert_allclose(statistics(plan), [10, 70, 40, 30], rtol=1e-9)
  again = pooled([np.full(7, 10.0), np.repeat(70.0, 8)])
  np.testing.assert_allclose(statistics(again), statistics(plan), rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=30), min_size=2, max_size=6),
       st.randoms(use_true_random=False))
def test_grouping_of_the_cases_into_datasets_does_not_matter(cases, random):
  """Datasets only change the order in which the cases come; ties are many here."""
  cases = [np.array(c, np.float64) for c in cases]
  shuffled = [c[::-1] for c in cases]
  random.shuffle(shuffled)
  np.testing.assert_allclose(statistics(pooled(shuffled)), statistics(pooled(cases)), rtol=1e-9,
                             atol=1e-9)


def test_order_does_not_matter_where_equal_values_weigh_differently():
  """The lowest value once in 1000 voxels of one case and once in 100 of another: which of the two
  is ranked last decides whether the 0.5 percentile lies beyond them."""
  thin, thick = np.full(1000, 10.0), np.full(100, 10.0)
  thin[0] = thick[0] = 0
  found = [statistics(pooled(cases)) for cases in ((thin, thick), (thick, thin),
                                                   (thin[::-1], thick[::-1]))]
  assert found[0] == found[1] == found[2]


def test_a_case_without_foreground_says_nothing():
  cases = random_cases()
  assert pooled([*cases, np.zeros(0)]) == pooled(cases)
  with pytest.raises(InputError, match="no case has a positive voxel"):
    pooled([np.zeros(0), []])


def test_a_constant_foreground_is_not_divided_by_zero():
  plan = pooled([np.full(10, 40.0)])
  assert statistics(plan) == (40, 40, 40, 1)
  np.testing.assert_array_equal(plan.normalise(np.array([-1000, 40, 3000]), 0.0, 1.0), 0)


def test_ct_is_clipped_and_standardised_by_the_plan_alone():
  plan = Plan("ct", SPACING, SUBVOLUME, low=-100.0, high=300.0, mean=50.0, sd=80.0)
  image = np.array([-1024, -100, 50, 130, 300, 3000], np.int16)
  expected = (np.array([-100, -100, 50, 130, 300, 300]) - 50) / 80
  for mean, sd in ((0.0, 1.0), (700.0, 9.0)):
    normal = plan.normalise(image, mean, sd)
    np.testing.assert_allclose(normal, expected, rtol=1e-6)
    assert normal.dtype == np.float32


def test_mr_is_standardised_by_its_own_image():
  """Any scale and offset of an image gives the same input, from a part of it as well."""
  plan = pooled(random_cases(), "mr")
  assert plan == pooled([], "mr")  # nothing is pooled
  image = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
  scaled = 30 * image + 400
  normal = plan.normalise(image, image.mean(), image.std())
  np.testing.assert_allclose(normal.mean(), 0, atol=1e-5)
  np.testing.assert_allclose(normal.std(), 1, rtol=1e-5)
  part = plan.normalise(scaled[1:3], scaled.mean(), scaled.std())
  np.testing.assert_allclose(part, normal[1:3], atol=1e-3)
  constant = plan.normalise(np.full(3, 5.0), 5.0, 0.0)
  np.testing.assert_array_equal(constant, 0)


def test_colours_span_minus_one_to_one():
  plan = Plan.pooled("rgb", (1, 1), (64, 64), [])
  normal = plan.normalise(np.array([[[0, 51, 255]]], np.uint8), 0.0, 1.0)
  np.testing.assert_allclose(normal, [[[-1, 51 / 127.5 - 1, 1]]], rtol=1e-6)
  assert normal.dtype == np.float32


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_json_both_ways(modality):
  plan = pooled(random_cases(), modality)
  assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("modality, spacing, subvolume", [
    ("pet", (1, 1, 1), (8, 8, 8)), ("ct", (1, 1), (8, 8, 8)), ("ct", (1, 0, 1), (8, 8, 8)),
    ("ct", (1, 1, 1), (8, 8, 0)), ("ct", (), ())])
def test_settings_that_make_no_plan(modality, spacing, subvolume):
  with pytest.raises(InputError) as error:
    Plan(modality, spacing, subvolume)
  assert error.value.usage


def test_spacing_is_the_median_axis_by_axis():
  assert pooled_spacing([(5, 1, 0.7), (1, 2, 0.8), (3, 9, 0.9)]) == (3, 2, 0.8)
  assert pooled_spacing([(1.0, 2.0), (2.0, 4.0)]) == (1.5, 3)


def test_spacings_are_one_but_for_rounding():
  assert same_spacing((3.0, 0.8, 0.8), (3.0, 0.8, 0.80001))
  assert not same_spacing((3.0, 0.8, 0.8), (3.0, 0.8, 0.81))
  assert not same_spacing((1.0, 1.0), (1.0, 1.0, 1.0))


# --- fitting ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shape", "spacing", "expected"), [
    ((64, 64, 64), (1.0, 1.0, 1.0), ((2, 2, 2),) * 4),
    ((32, 256, 256), (2.5, 0.8, 0.8), ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))),
    ((4, 32, 32), (5.0, 1.0, 1.0), ((1, 2, 2),) * 3),
    ((512, 512), (1.0, 1.0), ((2, 2),) * 5),
    ((7, 7, 7), (1.0, 1.0, 1.0), ((2, 2, 2),)),
    ((1, 40, 40), (1.0, 1.0, 1.0), ((1, 2, 2),) * 3),
])
def test_axes_are_halved_while_they_are_fine_and_long_enough(shape, spacing, expected):
  assert pooling_strides(shape, spacing) == expected


def voxels(subvolume, strides):
  return float(np.prod(subvolume))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(8, 400), st.floats(0.3, 6)), min_size=2, max_size=3),
       st.floats(3, 7))
def test_the_subvolume_fits_its_budget_and_its_strides(axes, digits):
  shape, spacing = zip(*axes, strict=True)
  subvolume, strides = fit_subvolume(shape, spacing, voxels, 10**digits)
  unit = np.prod(strides, axis=0)
  assert voxels(subvolume, strides) <= 10**digits
  assert not np.any(np.mod(subvolume, unit)) and min(subvolume) >= MIN_FEATURES
  assert all(size < n + u for size, n, u in zip(subvolume, shape, unit, strict=True))


def test_more_memory_is_used_and_all_of_the_image_at_last():
  sizes = [voxels(*fit_subvolume((100, 200, 200), (2.0, 1.0, 1.0), voxels, budget))
           for budget in (1e4, 1e5, 1e6, 1e9)]
  assert sizes == sorted(sizes) and sizes[0] > 1e4 / 4 and sizes[-1] >= 100 * 200 * 200
  subvolume, _ = fit_subvolume((100, 200, 200), (2.0, 1.0, 1.0), voxels, 1e6)
  extent = np.multiply(subvolume, (2.0, 1.0, 1.0))
  assert extent.max() / extent.min() < 1.5


def test_a_budget_too_small_for_anything():
  with pytest.raises(InputError, match="memory_gb"):
    fit_subvolume((64, 64, 64), (1.0, 1.0, 1.0), voxels, 10)
