"""Scores a predictor on cases, each on its annotated classes only."""

from collections.abc import Callable
from collections.abc import Iterable

from condseg_jax import metrics
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.predictor import Predictor


def evaluate(predictor: Predictor, cases: Iterable[LabelledCase], *,
             tolerance_mm: float | None = None, fast: bool = False,
             fusion: str = "argmax",
             on_case: Callable[..., None] | None = None) -> list[CaseScore]:
  """Returns one row per case and class.

  Annotated classes that are unknown to the network have no row. All classes of the network are
  decoded, so that they compete for voxels as they would in a new image.

  Args:
    predictor: the network.
    cases: read one at a time.
    tolerance_mm: tolerance of the surface Dice in mm, required unless `fast`.
    fast: computes overlap metrics only.
    fusion: see `Predictor.predict`.
    on_case: called after each case with its id, image, prediction, truth and rows.
  """
  rows = []
  for case in cases:
    volume, truth = case.read()
    prediction = predictor.predict(volume, fusion=fusion)
    scored = [CaseScore(case.id, name,
                        metrics.score_case(prediction.masks[name], mask, volume.spacing,
                                           tolerance_mm, fast=fast))
              for name, mask in truth.items() if name in prediction.masks]
    rows += scored
    if on_case:
      on_case(case.id, volume, prediction, truth, scored)
  return rows
