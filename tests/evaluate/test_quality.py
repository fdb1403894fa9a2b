"""Quality: the score by hand, the map never falls, the bound covers."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.evaluate.quality import fit
from condseg_jax.evaluate.quality import isotonic
from condseg_jax.infer.prediction import Agreement
from condseg_jax.infer.prediction import DiceMap
from condseg_jax.infer.prediction import quality
from condseg_jax.infer.prediction import SoftDice
from condseg_jax.infer.sliding_window import Slab

unit = st.floats(0, 1)


def drawn(rng, count):
  """Cases whose Dice rises with a score, with noise that is larger for worse ones."""
  score = rng.uniform(0.2, 1, count)
  return score, np.clip(score ** 2 + rng.normal(0, 0.15, count) * (1.1 - score), 0, 1)


def test_the_score_by_hand():
  """2 (0.9 + 0.6) / ((0.9 + 0.6 + 0.3 + 0) + 2), over two slabs."""
  meter, rest = SoftDice(), (slice(0, 2),)
  meter(Slab([4], (slice(0, 1), *rest), np.array([[[0.9, 0.3]]], np.float32)))
  meter(Slab([4], (slice(1, 2), *rest), np.array([[[0.6, 0.0]]], np.float32)))
  assert meter.score(4) == pytest.approx(2 * 1.5 / (1.8 + 2))
  nothing = SoftDice()
  nothing(Slab([0], (slice(0, 1), *rest), np.full((1, 1, 2), 0.4, np.float32)))
  assert nothing.score(0) == 0


def test_members_are_compared_in_pairs():
  """Three masks on two windows, in any order: the common voxels of all pairs by their sizes."""
  masks = np.random.default_rng(0).random((3, 2, 4, 5)) < 0.6
  found = Agreement(3)
  for member, window in ((0, 0), (0, 1), (1, 1), (2, 1), (1, 0), (2, 0)):
    found([0, 4 * window], 7, np.where(masks[member, window], 0.5, 0.49))
  pairs = [(0, 1), (0, 2), (1, 2)]
  common = sum((masks[a] & masks[b]).sum() for a, b in pairs)
  assert found.dice(7) == pytest.approx(
      2 * common / sum(masks[a].sum() + masks[b].sum() for a, b in pairs))
  assert found.dice(3) is None
  single = Agreement(1)
  single([0, 0], 7, np.ones((4, 5)))
  assert single.dice(7) is None


@given(st.lists(st.tuples(unit, unit), min_size=2, max_size=30))
def test_the_map_never_falls_and_keeps_the_mean(pairs):
  x, y = np.array(pairs).T
  knots, expected = isotonic(x, y)
  assert np.all(np.diff(knots) > 0) and np.all(np.diff(expected) >= -1e-12)
  assert np.interp(x, knots, expected).mean() == pytest.approx(y.mean(), abs=1e-6)


def test_dice_that_rises_with_the_score_is_interpolated():
  knots, expected = isotonic(np.array([0.9, 0.1, 0.5, 0.5]), np.array([0.8, 0.0, 0.5, 0.7]))
  np.testing.assert_allclose(knots, [0.1, 0.5, 0.9])
  np.testing.assert_allclose(expected, [0.0, 0.6, 0.8])


def test_the_bound_covers_what_it_says():
  """Of exchangeable cases, 90 % on average over many fits, also of few cases."""
  rng = np.random.default_rng(0)
  for count, tolerance in ((19, 0.03), (100, 0.02)):
    covered = []
    for _ in range(150):
      found = fit(*drawn(rng, count), np.arange(count) % 5)
      score, dice = drawn(rng, 50)
      covered.append(np.mean(dice >= found.bound(score)))
    assert np.mean(covered) == pytest.approx(0.9, abs=tolerance), count


def test_eight_cases_have_no_bound():
  score, dice = drawn(np.random.default_rng(0), 9)
  assert fit(score, dice, np.arange(9) % 3).cases == 9
  assert fit(score[:8], dice[:8], np.arange(8) % 3) is None
  assert fit(score, dice, np.zeros(9)) is None, "no member could be checked"


def test_what_is_said_of_a_structure():
  plain = quality(0.7, None, None)
  assert plain == {"soft_dice": 0.7}
  found = fit(*drawn(np.random.default_rng(2), 40), np.arange(40) % 5)
  entry = quality(0.9, 0.8, vars(found))
  assert entry["member_dice"] == 0.8
  assert 0 <= entry["dice_bound"] < entry["predicted_dice"] <= 1
  assert found.correlation > 0.8 and 0 < found.error < 0.15
  assert DiceMap((0.5,), (0.4,), -0.6, 9).bound(0.5) == 0
