"""Calibration: what is known of synthetic voxels is found again, and decides between classes."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.evaluate.border_voxels import BorderVoxels
from condseg_jax.evaluate.border_voxels import DRAWN
from condseg_jax.evaluate.border_voxels import logit
from condseg_jax.evaluate.border_voxels import NEAR
from condseg_jax.evaluate.calibration import adaptive_error
from condseg_jax.evaluate.calibration import calibrate
from condseg_jax.evaluate.calibration import cross_entropy
from condseg_jax.evaluate.calibration import fit
from condseg_jax.evaluate.calibration import MIN_CASES
from condseg_jax.evaluate.calibration import reliability
from condseg_jax.infer.fuse import best_class
from condseg_jax.infer.fuse import calibrated
from condseg_jax.infer.fuse import Scaling
from condseg_jax.infer.sliding_window import Slab
from condseg_jax.model_io.fold_run import Voxels


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


def synthetic(slope=1.0, intercept=0.0, count=4000, seed=0):
  """Voxels whose true logit is slope · z + intercept."""
  rng = np.random.default_rng(seed)
  z = rng.normal(0, 2.5, count)
  positive = rng.random(count) < sigmoid(slope * z + intercept)
  return Voxels(z.astype(np.float32), positive, np.full(count, 1 / count, np.float32))


def cases(number, **options):
  return {f"c{i}": synthetic(seed=i, **options) for i in range(number)}


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.0), (2.0, 0.7)])
def test_the_scaling_is_recovered(slope, intercept):
  """Also that of a calibrated network, which is (1, 0)."""
  found = fit(synthetic(slope, intercept, 200_000))
  assert found == pytest.approx((slope, intercept), abs=0.03)


def test_the_scaling_is_the_minimum():
  voxels = synthetic(0.5, 0.3)
  least = fit(voxels)
  loss = lambda a, b: cross_entropy(voxels._replace(logit=a * voxels.logit + b))
  for da, db in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
    assert loss(*least) < loss(least.slope + da, least.intercept + db)


def test_separable_voxels_have_a_finite_scaling():
  z = np.array([-2, -1, 1, 2], np.float32)
  slope, intercept = fit(Voxels(z, z > 0, np.full(4, 0.25, np.float32)))
  assert 1 < slope < 20 and abs(intercept) < 1e-6


def test_equal_numbers_on_both_sides_are_weighed_back():
  """A twentieth of the voxels is in the mask; drawn at equal numbers they are half."""
  voxels = synthetic(1.0, -4.0, 400_000)
  share = voxels.positive.mean()
  assert share < 0.15
  rng = np.random.default_rng(1)
  sides = [rng.choice(np.flatnonzero(voxels.positive == side), 20_000) for side in (True, False)]
  drawn = np.concatenate(sides)
  weight = np.repeat([share / 20_000, (1 - share) / 20_000], 20_000)
  found = fit(Voxels(voxels.logit[drawn], voxels.positive[drawn], weight))
  assert found == pytest.approx((1.0, -4.0), abs=0.08)


def test_the_error_is_the_distance_from_the_diagonal():
  assert adaptive_error(synthetic(count=200_000)) < 0.005
  n = 30_000
  sure = Voxels(np.full(n, logit(np.float32(0.9))), np.arange(n) < 0.6 * n,
                np.ones(n, np.float32))
  assert reliability(sure) == [[pytest.approx(0.9), pytest.approx(0.6), pytest.approx(1)]]
  assert adaptive_error(sure) == pytest.approx(0.3)


def test_bins_have_equal_numbers():
  curve = reliability(synthetic(count=30_000), bins=10)
  np.testing.assert_allclose([w for _, _, w in curve], 0.1, atol=1e-3)
  assert [p for p, _, _ in curve] == sorted(p for p, _, _ in curve)


def test_a_class_is_calibrated_on_what_its_members_did_not_see():
  voxels = cases(6, slope=0.4, intercept=0.3)
  members = {case: i % 3 for i, case in enumerate(voxels)}
  entry = calibrate(voxels, members)
  assert (entry["slope"], entry["intercept"]) == pytest.approx((0.4, 0.3), abs=0.05)
  before, after = entry["error"]
  assert before > 0.1 and after < 0.02 and entry["cases"] == 6
  # One member's cases contradict all others: these say nothing about it.
  mixed = voxels | {"c0": synthetic(-3.0), "c3": synthetic(-3.0)}
  assert calibrate(mixed, members)["error"][1] > 0.1


@pytest.mark.parametrize(("voxels", "reason"), [
    (cases(MIN_CASES - 1), "4 cases, 5 are needed"),
    (cases(5, slope=0.0), "do not tell its voxels"),
    (cases(5, slope=0.4, intercept=-1.5), "costs Dice"),
    ({f"c{i}": synthetic((0.4, 2.5)[i % 2], seed=i) for i in range(6)}, "does not lower")])
def test_a_class_is_left_as_it_is(voxels, reason):
  """Few cases, no information, masks that would shrink, members that need opposite things."""
  entry = calibrate(voxels, {case: i % 2 for i, case in enumerate(voxels)})
  assert reason in entry["reason"] and "slope" not in entry


def test_cases_of_one_fold_cannot_be_checked():
  assert "one fold" in calibrate(cases(5), dict.fromkeys(cases(5), 0))["reason"]


# --- Voxels near the border.
def test_voxels_are_drawn_evenly_near_the_border_and_read_from_slabs():
  rng = np.random.default_rng(0)
  mask = np.zeros((40, 36, 30), np.uint8)
  mask[12:18, 14:20, 8:16] = 1
  mask[:, :16] = np.where(mask[:, :16] == 0, 2, mask[:, :16])  # half of the surroundings unlabelled
  probability = rng.uniform(0.01, 0.99, mask.shape).astype(np.float32)
  border = BorderVoxels({3: mask, 5: np.zeros_like(mask)}, seed=7)
  for rows in (slice(0, 15), slice(15, 40)):
    box = (rows, slice(0, 36), slice(0, 30))
    planes = np.stack([probability[box], 0 * probability[box], 0 * probability[box]])
    border(Slab([3, 4, 5], box, planes))
  found = border.voxels()
  assert set(found) == {3}, "a class without a mask has no border"
  size = 6 * 6 * 8
  assert found[3].positive.sum() == (~found[3].positive).sum() == min(size, DRAWN)
  part = mask[2:28, 16:30, 0:26]
  outside = (part == 0).sum()
  assert found[3].weight[found[3].positive].sum() == pytest.approx(size / (size + outside))
  assert found[3].weight.sum() == pytest.approx(1)
  values = set(logit(probability[mask == 1]))
  assert set(found[3].logit[found[3].positive]) == values
  near = np.zeros_like(mask, bool)
  near[12 - NEAR:18 + NEAR, 14 - NEAR:20 + NEAR, 0:16 + NEAR] = True
  assert set(found[3].logit[~found[3].positive]) <= set(logit(probability[near & (mask == 0)]))


def test_nothing_is_drawn_without_a_border():
  for mask in (np.zeros((4, 4)), np.ones((4, 4)), np.full((4, 4), 2)):
    assert BorderVoxels({0: mask.astype(np.uint8)}, seed=0).voxels() == {}


# --- Applied.
@given(st.floats(0, 1, width=32), st.floats(0.05, 20), st.floats(-20, 20))
def test_a_scaling_keeps_order_and_range(p, slope, intercept):
  scaling = Scaling(slope, intercept)
  found = scaling(np.array([0, p, 1], np.float32))
  assert found.dtype == np.float32 and found[0] == 0 and found[2] == 1
  assert np.all(np.diff(found) >= 0)
  if 1e-4 < p < 0.9999:
    z = slope * np.log(p / (1 - p)) + intercept
    assert found[1] == pytest.approx(sigmoid(z), abs=2e-3)


def test_calibration_decides_between_classes():
  """By hand: an over-confident 0.9 becomes 0.75 at half the slope, below the honest 0.8."""
  planes = np.array([[[0.9, 0.9]], [[0.8, 0.7]]], np.float32)
  slab = lambda: [Slab([0, 1], (slice(0, 1), slice(0, 2)), planes.copy())]
  before, _ = best_class(slab(), (1, 2), [0, 1])
  after, score = best_class(calibrated(slab(), {0: Scaling(0.5, 0.0)}), (1, 2), [0, 1])
  np.testing.assert_array_equal(before, [[1, 1]])
  np.testing.assert_array_equal(after, [[2, 1]])
  np.testing.assert_allclose(score, [[0.8, 0.75]], rtol=1e-6)
