"""Score rows (one case, one class) and their summary per class."""


from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from condseg_jax.metrics import METRICS

# Keys of metrics.score_case that depend on the dimension, by unit.
_SIZE_METRICS = {
    "ml": ("volume_error_ml", "volume_error_relative", "false_positive_ml"),
    "px": ("area_error_px", "area_error_relative", "false_positive_px"),
}


@dataclasses.dataclass(frozen=True)
class CaseScore:
  """Scores of one class in one case.

  Attributes:
    case: id of the case.
    class_name: the class.
    metrics: as returned by `metrics.score_case`; nan means excluded or undefined.
  """
  case: str
  class_name: str
  metrics: Mapping[str, float]


def summarise(rows: Iterable[CaseScore], class_names: Sequence[str]) -> dict:
  """Summarises scores: means over cases with 95 % bootstrap intervals, per class and overall.

  Args:
    rows: scores, all 2-D or all 3-D; a class that a case does not annotate has no row.
    class_names: classes of the summary in order.

  Returns:
    {"classes": {name: {metric: {"mean", "ci95": [lo, hi], "n"}, …, "absent": cases whose truth is
    empty, "cases": cases scored}}, "mean_dice", "mean_iou", "n_classes": classes in mean_dice,
    "n_cases", "size_unit": "ml" or "px"}. "hd95" also has "undefined", the number of scored cases
    in which it is undefined. The false-positive size is averaged over the absent cases. A class
    that is absent everywhere has n = 0, a nan mean, and is excluded from the mean over classes.

    For images (2-D) also "pooled_iou" per class and "mean_pooled_iou": intersections and unions
    summed over all images before the division, the convention of Cityscapes and CamVid.

  Raises:
    ValueError: for a class not in `class_names`, a case scored twice, or mixed 2-D and 3-D.
  """
  rows = list(rows)
  unit = _size_unit(rows)
  by_class: dict[str, dict[str, Mapping[str, float]]] = {name: {} for name in class_names}
  for row in rows:
    if row.class_name not in by_class:
      raise ValueError(f"{row.case}: class {row.class_name!r} is not one of {list(class_names)}")
    if row.case in by_class[row.class_name]:
      raise ValueError(f"{row.case}: two scores for class {row.class_name!r}")
    by_class[row.class_name][row.case] = row.metrics
  classes = {name: _class_summary(list(cases.values()), unit) for name, cases in by_class.items()}
  entries = list(classes.values())
  summary = {
      "classes": classes,
      "mean_dice": nan_mean(entry["dice"]["mean"] for entry in entries),
      "mean_iou": nan_mean(entry["iou"]["mean"] for entry in entries),
      "n_classes": sum(entry["dice"]["n"] > 0 for entry in entries),
      "n_cases": len({row.case for row in rows}),
      "size_unit": unit,
  }
  if unit == "px":
    summary["mean_pooled_iou"] = nan_mean(entry["pooled_iou"] for entry in entries)
  return summary


def nan_mean(values: Iterable[float]) -> float:
  """Returns the mean of the values that are not nan; nan if there are none."""
  values = [value for value in values if not math.isnan(value)]
  return math.fsum(values) / len(values) if values else math.nan


def _class_summary(cases: list[Mapping[str, float]], unit: str) -> dict:
  entry: dict = {key: _statistic(cases, key) for key in (*METRICS, *_SIZE_METRICS[unit])}
  entry["hd95"]["undefined"] = sum(
      not math.isnan(case["dice"]) and math.isnan(case["hd95"]) for case in cases if "hd95" in case)
  entry["absent"] = entry[f"false_positive_{unit}"]["n"]
  entry["cases"] = len(cases)
  if unit == "px":
    tp, union = (sum(case[key] for case in cases for key in keys)
                 for keys in (("tp",), ("tp", "fp", "fn")))
    entry["pooled_iou"] = tp / union if union else math.nan
  return entry


def _statistic(cases: list[Mapping[str, float]], key: str) -> dict:
  values = [case.get(key, math.nan) for case in cases]
  return {"mean": nan_mean(values), "ci95": list(bootstrap_ci(values)),
          "n": sum(not math.isnan(value) for value in values)}


def _size_unit(rows: list[CaseScore]) -> str:
  units = {"px" if "area_px" in row.metrics else "ml" for row in rows}
  if len(units) > 1:
    raise ValueError("2-D and 3-D cases in one summary: their sizes have no common unit")
  return units.pop() if units else "ml"


# Maximum number of values per batch of resamples, so that memory does not grow with n.
_CHUNK = 4_000_000


def bootstrap_ci(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000,
                 level: float = 0.95) -> tuple[float, float]:
  """Returns a percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

  Cases are drawn with replacement, so the interval reflects variation over cases from the same
  population, not over training runs.

  Args:
    values: one value per case; nan (an excluded case) is ignored.
    seed: seed of the draws; the order of the values does not matter.
    resamples: number of bootstrap means.
    level: probability mass of the interval, between 0 and 1.

  Returns:
    (lo, hi); (nan, nan) without values, the value twice for a single value.
  """
  if not 0 < level < 1:
    raise ValueError(f"a level lies between 0 and 1, got {level}")
  known = np.asarray(values, np.float64).ravel()
  known = np.sort(known[~np.isnan(known)])
  if known.size == 0:
    return float("nan"), float("nan")
  if known[0] == known[-1]:
    return float(known[0]), float(known[0])  # exact, whereas a mean would round
  rng, means = np.random.default_rng(seed), np.empty(resamples)
  rows = max(1, _CHUNK // known.size)
  for start in range(0, resamples, rows):
    part = means[start:start + rows]
    part[:] = known[rng.integers(known.size, size=(part.size, known.size))].mean(axis=1)
  lo, hi = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
  return float(lo), float(hi)
