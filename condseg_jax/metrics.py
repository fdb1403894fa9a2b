"""Overlap, surface distance and size of one class in one case, 2-D or 3-D.

A prediction is boolean; a truth is three-valued (0 negative, 1 positive, 255 unlabelled). Every
function below considers labelled voxels only: predictions at unlabelled voxels are ignored.

The absent-class rule applies to every score (`absent_rule` is its only implementation):

* prediction and truth both empty: nothing to score, the case is excluded (nan);
* exactly one of them empty: Dice, IoU and surface Dice are 0; HD95 is undefined (nan, never 0);
* if the truth is empty, the predicted volume is `false_positive_ml`, which is 0 for a correctly
  empty prediction and nan in cases where the structure exists.

A mean over cases excludes nan and states the remaining n; a mean over classes excludes classes with
n = 0. In a case without labelled voxels all values are nan.

Surface voxels of a structure have a face neighbour that is labelled and outside the structure, or
that lies beyond the array: a structure cut by the border has a surface there. An unlabelled
neighbour does not make a surface, because its class is unknown. A non-empty structure enclosed by
unlabelled voxels has no surface: its surface scores are nan. An axis of length one has no extent
and hence no surface across it, so that a 3-D volume of a single slice agrees with the 2-D image.

Sizes are millilitres in 3-D and pixel counts in 2-D, as the keys of `score_case` indicate.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy import spatial

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED

MM3_PER_ML = 1000.0
# Distances are sums of rounded products: 3 voxels of 0.1 mm must lie within a tolerance of 0.3 mm.
_RELATIVE_ROUNDING = 1e-9
_OVERLAP_KEYS = ("dice", "iou")
_SURFACE_KEYS = ("hd95", "surface_dice")


class Metric(NamedTuple):
  """A measure of agreement between a prediction and a truth.

  Attributes:
    title: heading of its column.
    higher_is_better: direction of the metric; determines the worst value in `absent_rule`.
    unit: "mm" for a distance (pixels of an image without a physical size), "" for a fraction.
    digits: digits after the decimal point in tables.
    fast: whether it is cheap enough for evaluation during training.
    measure: (prediction, truth, spacing) → value, with both structures present; arrays as in
      `score_case`. None for metrics that `score_case` computes together.
  """

  title: str
  higher_is_better: bool = True
  unit: str = ""
  digits: int = 3
  fast: bool = False
  measure: Callable[[np.ndarray, np.ndarray, np.ndarray], float] | None = None


# To add one, write a function and register it here: it then has a column in cases.csv,
# summary.json, the tables and the page and, if it is fast, in the tables of studies.
METRICS = {
    "dice": Metric("Dice", fast=True),
    "iou": Metric("IoU", fast=True),
    "hd95": Metric("HD95", higher_is_better=False, unit="mm", digits=2),
    "surface_dice": Metric("surface Dice"),
}


def absent_rule(n_prediction: int, n_truth: int) -> dict[str, float] | None:
  """Applies the absent-class rule of the module docstring.

  Args:
    n_prediction: labelled voxels predicted as the class.
    n_truth: voxels of the class.

  Returns:
    A value for each of `METRICS` if a structure is absent: the worst, 0, if only one side has it
    and higher is better, else nan. None if both are present and the scores must be computed.
  """
  if n_prediction and n_truth:
    return None
  worst = 0.0 if n_prediction or n_truth else np.nan
  return {name: worst if m.higher_is_better else np.nan for name, m in METRICS.items()}


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
  """Computes Dice, 2|P ∩ T| / (|P| + |T|), over the labelled voxels; see `score_case`."""
  return _overlap(*_counts(*_checked(prediction, truth))[:3])["dice"]


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
  """Computes the IoU |P ∩ T| / |P ∪ T| over the labelled voxels; see `score_case`."""
  return _overlap(*_counts(*_checked(prediction, truth))[:3])["iou"]


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
  """Computes the 95th percentile Hausdorff distance, the larger of the two directed percentiles.

  Args:
    prediction: boolean, 2-D or 3-D.
    truth: three-valued, of the same shape.
    spacing: one value per axis, in mm. There is no default: a distance needs a spacing.

  Returns:
    Distance in the unit of `spacing` (mm; pixels for an image without a physical size), nan if
    undefined.
  """
  prediction, truth = _checked(prediction, truth)
  return _surface_scores(prediction, truth, _checked_spacing(spacing, truth.ndim), 0.0)["hd95"]


def surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float],
                 tolerance_mm: float) -> float:
  """Computes the fraction of both surfaces within a tolerance of the other (Nikolov et al. 2018).

  (|{p ∈ S_P : d(p, S_T) ≤ τ}| + |{t ∈ S_T : d(t, S_P) ≤ τ}|) / (|S_P| + |S_T|)

  Here a surface is a set of equally weighted boundary voxels; Nikolov et al. 2018
  (arXiv:1809.04430) weight surface elements by area, so the values differ slightly.

  Args:
    prediction: boolean, 2-D or 3-D.
    truth: three-valued, of the same shape.
    spacing: one value per axis, in mm.
    tolerance_mm: τ, in the unit of `spacing`.
  """
  prediction, truth = _checked(prediction, truth)
  return _surface_scores(prediction, truth, _checked_spacing(spacing, truth.ndim),
                         tolerance_mm)["surface_dice"]


def size_unit(ndim: int) -> str:
  """Returns 'ml' for 3-D (volumes), 'px' for 2-D (areas in pixels, independent of spacing)."""
  if ndim not in (2, 3):
    raise ValueError(f"expected a 2-D or 3-D mask, got {ndim}-D")
  return "ml" if ndim == 3 else "px"


def size(n_voxels: int, spacing: Sequence[float]) -> float:
  """Returns the size of `n_voxels` voxels: ml in 3-D (spacing in mm), pixels in 2-D."""
  if size_unit(len(spacing)) == "px":
    return float(n_voxels)
  return float(n_voxels * np.prod(np.asarray(spacing, np.float64)) / MM3_PER_ML)


def score_case(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float],
               tolerance_mm: float | None = None, *, fast: bool = False) -> dict[str, float]:
  """Computes all scores of one class in one case by the rules of the module docstring.

  Args:
    prediction: boolean, (D, H, W) or (H, W).
    truth: same shape, 0 negative, 1 positive, 255 unlabelled.
    spacing: one value per axis, in mm.
    tolerance_mm: tolerance of the surface Dice, in the unit of `spacing`; required unless `fast`.
    fast: omits the surface scores and their keys, for evaluation during training.

  Returns:
    dice, iou; hd95 (unit of `spacing`) and surface_dice unless `fast`; tp, fp, fn and n_unlabelled
    (voxels). In 3-D volume_ml, truth_volume_ml (both of labelled voxels), volume_error_ml
    (prediction - truth), volume_error_relative (the same over the truth), false_positive_ml;
    in 2-D area_px, truth_area_px, area_error_px, area_error_relative, false_positive_px. Metrics
    that were added to `METRICS` under their names.

  Raises:
    ValueError: mismatched shapes or spacing, or values out of range.
  """
  prediction, truth = _checked(prediction, truth)
  spacing_mm = _checked_spacing(spacing, truth.ndim)
  tp, fp, fn, n_unlabelled = _counts(prediction, truth)
  measured = n_unlabelled < truth.size
  scores = _overlap(tp, fp, fn)
  if not fast:
    if tolerance_mm is None:
      raise ValueError("the surface Dice needs a tolerance_mm (or ask for fast scores)")
    scores |= _surface_scores(prediction, truth, spacing_mm, tolerance_mm)
  scores |= _own_scores(prediction, truth, spacing_mm, tp + fp, tp + fn, fast)
  unit, what = size_unit(truth.ndim), "volume" if truth.ndim == 3 else "area"
  predicted, true = size(tp + fp, spacing), size(tp + fn, spacing)
  any_voxel = tp + fp + fn > 0
  return scores | {
      f"{what}_{unit}": predicted if measured else np.nan,
      f"truth_{what}_{unit}": true if measured else np.nan,
      f"{what}_error_{unit}": predicted - true if any_voxel else np.nan,
      f"{what}_error_relative": (predicted - true) / true if true else np.nan,
      f"false_positive_{unit}": predicted if measured and not true else np.nan,
      "tp": float(tp), "fp": float(fp), "fn": float(fn), "n_unlabelled": float(n_unlabelled),
  }


def _counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, int]:
  """Counts true positives, false positives, false negatives and unlabelled voxels."""
  positive = truth == POSITIVE
  tp = int(np.count_nonzero(prediction & positive))
  fp = int(np.count_nonzero(prediction & (truth == NEGATIVE)))
  return tp, fp, int(np.count_nonzero(positive)) - tp, int(np.count_nonzero(truth == UNLABELLED))


def _overlap(tp: int, fp: int, fn: int) -> dict[str, float]:
  absent = absent_rule(tp + fp, tp + fn)
  if absent is not None:
    return {key: absent[key] for key in _OVERLAP_KEYS}
  return {"dice": 2.0 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn)}


def _own_scores(prediction, truth, spacing, n_prediction: int, n_truth: int,
                fast: bool) -> dict[str, float]:
  """Computes the metrics that were added to `METRICS`."""
  absent = absent_rule(n_prediction, n_truth)
  own = {name: m.measure for name, m in METRICS.items() if m.measure and (m.fast or not fast)}
  return {name: float(measure(prediction, truth, spacing)) if absent is None else absent[name]
          for name, measure in own.items()}


def _surface_scores(prediction: np.ndarray, truth: np.ndarray, spacing: np.ndarray,
                    tolerance_mm: float) -> dict[str, float]:
  if not tolerance_mm >= 0:
    raise ValueError(f"a tolerance is a distance of 0 or more, got {tolerance_mm}")
  labelled, true = truth != UNLABELLED, truth == POSITIVE
  predicted = prediction & labelled
  absent = absent_rule(int(np.count_nonzero(predicted)), int(np.count_nonzero(true)))
  if absent is not None:
    return {key: absent[key] for key in _SURFACE_KEYS}
  box = _bounding_box(predicted | true)
  surfaces_mm = [np.argwhere(_surface(mask[box], labelled[box])) * spacing
                 for mask in (predicted, true)]
  if not all(map(len, surfaces_mm)):
    return dict.fromkeys(_SURFACE_KEYS, np.nan)
  # Nearest neighbours among surface voxels give the same distances as a distance transform of the
  # volume, but a single distant false voxel does not extend the work to the whole scan.
  trees = [spatial.KDTree(points, balanced_tree=False, compact_nodes=False)
           for points in surfaces_mm]
  distances = [trees[1].query(surfaces_mm[0])[0], trees[0].query(surfaces_mm[1])[0]]
  limit = tolerance_mm * (1 + _RELATIVE_ROUNDING)
  within = sum(int(np.count_nonzero(d <= limit)) for d in distances)
  return {"hd95": float(max(np.percentile(d, 95) for d in distances)),
          "surface_dice": within / sum(map(len, distances))}


def _surface(mask: np.ndarray, labelled: np.ndarray) -> np.ndarray:
  """Returns the voxels of `mask` next to a labelled voxel outside it, or at the end of an axis."""
  outside = labelled & ~mask
  beside = np.zeros_like(mask)
  axes = [axis for axis in range(mask.ndim) if mask.shape[axis] > 1] or range(mask.ndim)
  for axis in axes:
    near, out = np.moveaxis(beside, axis, 0), np.moveaxis(outside, axis, 0)
    near[1:] |= out[:-1]
    near[:-1] |= out[1:]
    near[[0, -1]] = True
  return mask & beside


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
  """Returns the bounding box of a non-empty mask, one voxel wider except at the array's border."""
  (box,) = ndimage.find_objects(mask.astype(np.uint8))
  return tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)


def _checked(prediction, truth) -> tuple[np.ndarray, np.ndarray]:
  prediction, truth = np.asarray(prediction), np.asarray(truth)
  size_unit(truth.ndim)
  if prediction.dtype != bool:
    raise ValueError(f"a prediction is boolean, got {prediction.dtype}: threshold it first")
  if prediction.shape != truth.shape:
    raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
  known = sum(np.count_nonzero(truth == value) for value in (NEGATIVE, POSITIVE, UNLABELLED))
  if known != truth.size:
    raise ValueError(f"a truth holds 0, 1 and 255 (unlabelled); {truth.size - known} voxels differ")
  return prediction, truth


def _checked_spacing(spacing: Sequence[float], ndim: int) -> np.ndarray:
  spacing_mm = np.asarray(spacing, np.float64)
  if spacing_mm.shape != (ndim,) or not (np.isfinite(spacing_mm) & (spacing_mm > 0)).all():
    raise ValueError(f"expected {ndim} positive spacings in mm, got {spacing_mm.tolist()}")
  return spacing_mm
