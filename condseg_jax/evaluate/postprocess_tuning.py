"""Tunes the connected-component filter of each class on labelled cases."""

from collections.abc import Mapping
from collections.abc import Sequence
import math

import numpy as np

from condseg_jax import metrics
from condseg_jax.evaluate.scores import nan_mean
from condseg_jax.geometry import Volume
from condseg_jax.geometry import voxel_ml
from condseg_jax.infer.postprocess import clean
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.predictor import Prediction

GAIN = 0.002  # minimum gain in mean Dice for a filter to be chosen

# (class, filter, Dice of one case)
Row = tuple[str, ComponentFilter, float]


class Candidates:
  """Collects the Dice of every candidate filter; pass `on_case` to `evaluate.run.evaluate`.

  Args:
    smallest_ml: class → smallest true volume in the training set; components smaller than half of
      it are candidates for removal.
  """

  def __init__(self, smallest_ml: Mapping[str, float]):
    self._smallest = smallest_ml
    self.rows: list[Row] = []

  def on_case(self, case_id: str, volume: Volume, prediction: Prediction,  # noqa: ARG002
              truth: Mapping[str, np.ndarray], scored) -> None:  # noqa: ARG002
    size = voxel_ml(volume.affine)
    for name, mask in truth.items():
      if name not in prediction.masks:
        continue
      candidates = [ComponentFilter(), ComponentFilter(largest=True)]
      if name in self._smallest:
        candidates.append(ComponentFilter(minimum_ml=round(self._smallest[name] / 2, 6)))
      found = prediction.masks[name].astype(np.uint8)
      for cleaning in candidates:
        cleaned = found.copy()
        clean(cleaned, 1, cleaning, size)
        score = metrics.score_case(cleaned.astype(bool), mask, volume.spacing, None, fast=True)
        self.rows.append((name, cleaning, score["dice"]))


def choose(rows: Sequence[Row]) -> dict[str, ComponentFilter]:
  """Returns class → the filter with the highest mean Dice, if it gains at least `GAIN`."""
  chosen = {}
  for name in dict.fromkeys(row[0] for row in rows):
    means = {}
    for cleaning in dict.fromkeys(row[1] for row in rows if row[0] == name):
      means[cleaning] = nan_mean(row[2] for row in rows if row[:2] == (name, cleaning))
    best = max(means, key=lambda c: -math.inf if math.isnan(means[c]) else means[c])
    if means[best] >= means[ComponentFilter()] + GAIN:
      chosen[name] = best
  return chosen
