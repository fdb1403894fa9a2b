"""Location priors from the training masks, and Bayes' rule."""

import types

import numpy as np
import pytest

from condseg_jax.data import priors
from condseg_jax.infer.fuse import with_priors
from condseg_jax.infer.sliding_window import Slab


def case(shape, foreground, positives, annotated=("liver",)):
  return types.SimpleNamespace(
      shape=shape, annotated=annotated, foreground={"liver": foreground},
      positives={"liver": positives}, affine=np.diag([2.0, 1.0, 1.0, 1.0]).tolist())


def test_frequency_and_location_of_the_cases_that_annotate_the_class():
  cases = [case((8, 8, 8), [(0, 4, 4)] * 3, 64), case((16, 16, 16), [(1, 8, 9)] * 9, 0),
           case((8, 8, 8), [], 0, annotated=("spleen",))]
  found = priors.class_priors(cases, ["liver", "spleen"])
  assert set(found) == {"liver"}
  assert found["liver"]["frequency"] == (64 / 512 + 0) / 2
  location = np.array(found["liver"]["location"])
  assert location.shape == (priors.GRID,) * 3
  assert location.mean() == pytest.approx(1, abs=1e-3)
  # Both lie in cell (0, 4, 4), whatever their size; far away the class is rare, not excluded.
  assert np.unravel_index(location.argmax(), location.shape) == (0, 4, 4)
  assert location[7, 0, 0] == pytest.approx(priors.DOUBT, abs=1e-3)


def test_the_smallest_volume():
  cases = [case((8, 8, 8), [], 64), case((8, 8, 8), [], 50), case((8, 8, 8), [], 0)]
  assert priors.smallest_ml(cases) == {"liver": 50 * 2 / 1000}


def test_bayes_rule_slab_by_slab():
  rng = np.random.default_rng(0)
  planes = rng.uniform(0.01, 0.99, (2, 6, 5)).astype(np.float32)
  cells = rng.uniform(0.1, 3, (3, 2)).astype(np.float32)
  found = np.empty_like(planes)
  slabs = [Slab([7, 9], (slice(0, 4), slice(0, 5)), planes[:, :4].copy()),
           Slab([7, 9], (slice(4, 6), slice(0, 5)), planes[:, 4:].copy())]
  for slab in with_priors(slabs, (6, 5), {7: cells}):
    found[(slice(None), *slab.box)] = slab.planes
  np.testing.assert_array_equal(found[1], planes[1])  # the other has no prior
  # By hand: the centres of the cells are at 1/6, 1/2, 5/6 and 1/4, 3/4 of the axes.
  rows = [np.interp((np.arange(6) + 0.5) / 6, [1 / 6, 1 / 2, 5 / 6], column)
          for column in cells.T.astype(float)]
  ratio = [np.interp((np.arange(5) + 0.5) / 5, [1 / 4, 3 / 4], pair)
           for pair in np.transpose(rows)]
  odds = planes[0] / (1 - planes[0]) * np.array(ratio)
  np.testing.assert_allclose(found[0], odds / (1 + odds), rtol=1e-4)
