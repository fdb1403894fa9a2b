"""Cross-validated Dice, with intervals over patients."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from condseg_jax.evaluate.bootstrap import interval
from condseg_jax.evaluate.bootstrap import LEVEL
from condseg_jax.evaluate.bootstrap import mean_of_known
from condseg_jax.evaluate.bootstrap import ratio
from condseg_jax.evaluate.scores import CaseScore

_CHUNK = 500  # replicates at a time


def cross_validated(rows: Iterable[CaseScore], patients: Mapping[str, str],
                    class_names: Sequence[str], *, seed: int = 0, resamples: int = 10_000,
                    level: float = LEVEL) -> dict[str, Any]:
  """Summarises the Dice of cases, each scored by the member that did not see it.

  The interval is a percentile bootstrap that draws patients with replacement, with all of their
  cases and classes together. It reflects the variation over patients, not over trainings.

  Args:
    rows: scores; nan (a class absent from truth and prediction) is left out.
    patients: case → its patient.
    class_names: classes in order.
    seed: seed of the draws.
    resamples: number of bootstrap replicates.
    level: probability mass of the interval.

  Returns:
    {"mean_dice", "ci95", "cases", "patients", "classes": {name: {"dice", "ci95", "cases",
    "patients"}}, "dice": {case: {class: Dice}}}, where `mean_dice` is the mean over classes.
    Undefined numbers are None, as JSON has it.
  """
  rows = list(rows)
  dice: dict[str, dict[str, float | None]] = {}
  index = {patient: g for g, patient in enumerate(sorted({patients[row.case] for row in rows}))}
  column = {name: k for k, name in enumerate(class_names)}
  sums_GK = np.zeros((len(index), len(column)))
  counts_GK = np.zeros((len(index), len(column)))
  for row in rows:
    value = float(row.metrics["dice"])
    dice.setdefault(row.case, {})[row.class_name] = _known(value)
    if not math.isnan(value):
      place = index[patients[row.case]], column[row.class_name]
      sums_GK[place] += value
      counts_GK[place] += 1

  point_K = ratio(sums_GK.sum(0), counts_GK.sum(0))
  rng = np.random.default_rng(seed)
  drawn = np.full((resamples, len(column) + 1), np.nan)
  for start in range(0, resamples if len(index) else 0, _CHUNK):
    size = min(_CHUNK, resamples - start)
    times_BG = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size)
    scores_BK = ratio(times_BG @ sums_GK, times_BG @ counts_GK)
    drawn[start:start + size] = np.column_stack([scores_BK, mean_of_known(scores_BK, -1)])
  intervals = [[_known(x) for x in interval(values, level)] for values in drawn.T]
  classes = {name: {"dice": _known(point_K[k]), "ci95": intervals[k],
                    "cases": int(counts_GK[:, k].sum()),
                    "patients": int(np.count_nonzero(counts_GK[:, k]))}
             for name, k in column.items()}
  return {"mean_dice": _known(mean_of_known(point_K)), "ci95": intervals[-1], "cases": len(dice),
          "patients": len(index), "classes": classes, "dice": dice}


def _known(value) -> float | None:
  return None if math.isnan(value) else float(value)
