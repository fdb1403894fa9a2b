"""Thresholds and gate by hand."""

import dataclasses

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError
from condseg_jax.pseudo.rules import competences
from condseg_jax.pseudo.rules import pseudo_mask
from condseg_jax.pseudo.rules import Rules
from support.stored import write_arrays


def test_thresholds():
  p = np.array([0.0, 0.1, 0.11, 0.5, 0.79, 0.8, 1.0, np.nan])
  none = np.zeros(len(p))
  mask = pseudo_mask(p, none, none > 0, Rules())
  n, y, u = NEGATIVE, POSITIVE, UNLABELLED
  np.testing.assert_array_equal(mask, [n, n, u, u, u, y, y, u])


def test_what_a_case_annotates_decides():
  p, none = np.array([0.95, 0.5, 0.05]), np.zeros(3)
  mask = pseudo_mask(p, none, np.array([True, True, False]), Rules())
  np.testing.assert_array_equal(mask, [NEGATIVE] * 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9999))
def test_pseudo_masks_of_classes_that_exclude_each_other_do_not_overlap(seed):
  rng = np.random.default_rng(seed)
  one, other = rng.random((2, 40)).round(1)  # with ties
  excluded = rng.random(40) < 0.2
  masks = [pseudo_mask(a, b, excluded, Rules()) for a, b in ((one, other), (other, one))]
  assert not np.any((masks[0] == POSITIVE) & (masks[1] == POSITIVE))
  assert all((mask[excluded] == NEGATIVE).all() for mask in masks)


def cases(tmp_path, sizes):
  """Cases of one class with masks of some sizes."""
  for number, size in enumerate(sizes):
    mask = (np.arange(64).reshape(4, 4, 4) < size).astype(np.uint8)
    yield write_arrays(tmp_path, f"case_{number}", np.zeros((4, 4, 4, 1), np.float32), [mask],
                       dataset="d", split="train", annotated=["liver"], source="",
                       affine=np.diag([1000.0, 1, 1, 1]))  # voxels of 1 ml


def test_the_gate(tmp_path):
  found = lambda dice, sizes, least=0.5: competences(
      ["liver"], {"classes": {"liver": {"dice": dice}}}, cases(tmp_path, sizes),
      Rules(competence=least))["liver"]
  entry = found(0.5, [3, 10, 5])
  assert entry.joins and entry.range_ml == pytest.approx((3, 10)) and not entry.absent
  assert [entry.accepts(v) for v in (0, 2.9, 3, 10, 10.1)] == [False, False, True, True, False]
  assert not found(0.49, [3]).joins and not found(None, [3]).joins
  assert found(0.49, [3], 0.4).joins
  entry = found(0.9, [0, 4, 6])  # an absent organ is as plausible as the others
  assert entry.accepts(0) and not entry.accepts(1) and entry.range_ml == pytest.approx((4, 6))
  assert not found(0.9, [0]).joins  # no true mask to compare with


def test_a_pseudo_mask_is_no_evidence(tmp_path):
  (case,) = cases(tmp_path, [3])
  other = dataclasses.replace(case, annotated=(), positives={}, foreground={},
                              pseudo={"liver": ((0, 0, 0),)})
  scores = {"classes": {"liver": {"dice": 0.9}}}
  assert competences(["liver"], scores, [case, other], Rules())["liver"].range_ml == pytest.approx(
      (3, 3))
  assert not competences(["liver"], scores, [other], Rules())["liver"].joins


@pytest.mark.parametrize("low, high", [(0.5, 0.8), (0.1, 0.5), (-0.1, 0.8), (0.1, 1.1),
                                       (float("nan"), 0.8)])
def test_thresholds_leave_something_undecided(low, high):
  with pytest.raises(InputError, match="positive"):
    Rules(high, low)
