"""Cross-validated Dice: its means, and intervals that count patients, not cases."""

import numpy as np
import pytest

from condseg_jax.evaluate.cross_validation import cross_validated
from condseg_jax.evaluate.scores import bootstrap_ci
from condseg_jax.evaluate.scores import CaseScore


def rows(dice, name="liver"):
  return [CaseScore(f"{name}/{i}", name, {"dice": value}) for i, value in enumerate(dice)]


def summary(found, patients=None, names=("liver",), **options):
  own = {row.case: row.case for row in found}
  return cross_validated(found, patients or own, names, **options)


def test_one_case_a_patient_is_the_bootstrap_over_cases():
  dice = np.random.default_rng(0).uniform(0.6, 1, 40)
  found = summary(rows(dice), resamples=20_000)
  assert found["mean_dice"] == found["classes"]["liver"]["dice"] == pytest.approx(dice.mean())
  np.testing.assert_allclose(found["ci95"], bootstrap_ci(dice, resamples=20_000), atol=2e-3)
  assert found["ci95"] == found["classes"]["liver"]["ci95"]


def test_copies_of_a_patient_do_not_narrow_the_interval():
  """Four scans of everybody say no more than one."""
  dice = np.random.default_rng(1).uniform(0.6, 1, 20)
  single = summary(rows(dice))
  copied = rows(np.repeat(dice, 4))
  patients = {row.case: f"p{i // 4:02d}" for i, row in enumerate(copied)}
  clustered, careless = summary(copied, patients), summary(copied)
  assert (clustered["cases"], clustered["patients"]) == (80, 20)
  np.testing.assert_allclose(clustered["ci95"], single["ci95"], atol=5e-3)
  width = lambda s: s["ci95"][1] - s["ci95"][0]
  assert width(careless) == pytest.approx(width(single) / 2, rel=0.15)


def test_classes_count_alike_and_undefined_scores_do_not():
  found = summary(rows([0.5, 0.7, float("nan")]) + rows([1.0], "spleen"),
                  names=("liver", "spleen", "pancreas"))
  assert found["mean_dice"] == pytest.approx((0.6 + 1.0) / 2)
  assert found["classes"]["liver"]["cases"] == 2 and found["cases"] == 4
  assert found["dice"]["liver/2"] == {"liver": None}
  assert found["classes"]["pancreas"] == {"dice": None, "ci95": [None, None], "cases": 0,
                                          "patients": 0}


def test_nothing_is_no_score():
  found = summary([])
  assert found["mean_dice"] is None and found["ci95"] == [None, None] and found["dice"] == {}
