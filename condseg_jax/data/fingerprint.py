"""Statistics of a training set: sizes, spacings and intensities, per dataset and pooled."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from condseg_jax.data.store import Case
from condseg_jax.geometry import oblique_degrees

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)


def fingerprint(cases: Iterable[Case]) -> dict:
  """Computes the statistics of the training cases, or of all cases if none is for training.

  Returns:
    A JSON-compatible dict {"datasets": {name: summary}, "pooled": summary}. A summary contains the
    number of cases; the annotated classes; minimum, median and maximum of native and prepared
    shape, of native spacing and field of view in mm (all D H W), and of the obliqueness in degrees;
    and percentiles, mean and sd of the intensities of positive voxels, where every case has the
    same weight (None without a positive voxel).
  """
  cases = list(cases)
  cases = [case for case in cases if case.split == "train"] or cases
  datasets: dict[str, list[Case]] = {}
  for case in cases:
    datasets.setdefault(case.dataset, []).append(case)
  summaries = {name: _summary(group) for name, group in datasets.items()}
  pooled = _summary(cases) if len(summaries) != 1 else next(iter(summaries.values()))
  return {"datasets": summaries, "pooled": pooled}


def same_fingerprint(one: Any, other: Any) -> bool:
  """Returns whether two fingerprints are equal up to rounding."""
  if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
    return all(map(same_fingerprint, one, other))
  if not isinstance(one, dict) or not isinstance(other, dict):
    numbers = isinstance(one, float) and isinstance(other, float)
    return one == other or numbers and math.isclose(one, other, rel_tol=1e-6)
  return one.keys() == other.keys() and all(same_fingerprint(one[key], other[key]) for key in one)


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the summary of two sets of cases together, from their summaries.

  Counts, classes, minima and maxima are those of all cases. Medians, means and percentiles, which
  the summaries do not determine, are means weighted by the numbers of cases.
  """
  weights = np.array([one["cases"], other["cases"]], np.float64)
  mean = lambda a, b: np.average([a, b], axis=0, weights=weights).tolist()
  out = {"cases": one["cases"] + other["cases"],
         "annotated": list(dict.fromkeys([*one["annotated"], *other["annotated"]]))}
  for key in ("native_shape", "native_spacing", "native_field", "oblique_degrees", "shape"):
    if key in one and key in other:  # records of former versions lack some
      a, b = one[key], other[key]
      out[key] = {"min": np.minimum(a["min"], b["min"]).tolist(),
                  "median": mean(a["median"], b["median"]),
                  "max": np.maximum(a["max"], b["max"]).tolist()}
  a, b = one.get("intensity"), other.get("intensity")
  out["intensity"] = {key: mean(a[key], b[key]) for key in a if key in b} if a and b else a or b
  return out


def _summary(cases: Sequence[Case]) -> dict:
  return {
      "cases": len(cases),
      "annotated": list(dict.fromkeys(name for case in cases for name in case.annotated)),
      "native_shape": _spread([case.native_shape for case in cases]),
      "native_spacing": _spread([case.native_spacing for case in cases]),
      "native_field": _spread([np.multiply(case.native_shape, case.native_spacing)
                               for case in cases]),
      "oblique_degrees": _spread([[oblique_degrees(np.asarray(case.affine))] for case in cases]),
      "shape": _spread([case.shape for case in cases]),
      "intensity": _intensity([case.intensities for case in cases if case.intensities]),
  }


def _spread(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
  values = np.asarray(rows, np.float64)
  return {"min": values.min(0).tolist(), "median": np.median(values, axis=0).tolist(),
          "max": values.max(0).tolist()}


def _intensity(samples: Sequence[Sequence[float]]) -> dict[str, float] | None:
  if not samples:
    return None
  values = np.concatenate([np.asarray(s, np.float64) for s in samples])
  counts = np.array([len(s) for s in samples])
  weights = np.repeat(1 / counts, counts)
  mean = float(np.average(values, weights=weights))
  sd = float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
  # As numpy's percentile with weights and the method inverted_cdf, in a fifth of the time.
  order = np.argsort(values)
  share = np.cumsum(weights[order])
  points = values[order[np.searchsorted(share / share[-1], np.array(PERCENTILES) / 100)]]
  return {**{f"p{p:g}": float(x) for p, x in zip(PERCENTILES, points, strict=True)},
          "mean": mean, "sd": sd}
