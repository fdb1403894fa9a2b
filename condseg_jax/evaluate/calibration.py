"""Fits the calibration of each class on cross-validated voxels, and measures it.

All cases of a class weigh the same, whatever their size, and so do their voxels near the border
(see `evaluate.border_voxels`).
"""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import numpy as np

from condseg_jax.infer.fuse import Scaling
from condseg_jax.model_io.fold_run import Voxels

MIN_CASES = 5  # two numbers from fewer are noise
BINS = 15
_RIDGE = 1e-4  # towards slope 1 and intercept 0: without it, separable voxels have no optimum
_FLATTEST = 0.05  # a slope below this says that the probabilities tell nothing
_STEPS = 50
_LOST = 0.005  # of Dice, which a calibration may cost at most


def calibrate(voxels: Mapping[str, Voxels], members: Mapping[str, int]) -> dict[str, Any]:
  """Fits the calibration of a class.

  Whether it helps is measured on each member's cases with what was fitted on those of the others.

  Args:
    voxels: case → its voxels; cases without the class are absent.
    members: case → the member that did not see it.

  Returns:
    {"cases", "slope", "intercept", "error": [before, after], "dice": [before, after], "curve":
    {"before", "after"}} for JSON: `error` is `adaptive_error` of uncalibrated and calibrated
    probabilities, `dice` that of their masks near the border at 0.5, `curve` their `reliability`. A
    class that is left as it is has a "reason" instead of slope and intercept, and the others only
    if it was fitted.
  """
  count = len(voxels)
  if count < MIN_CASES:
    return {"cases": count, "reason": f"{count} cases, {MIN_CASES} are needed"}
  folds = {member: [v for case, v in voxels.items() if members[case] == member]
           for member in sorted({members[case] for case in voxels})}
  if len(folds) < 2:
    return {"cases": count, "reason": "all cases are in one fold"}
  held_out = [_joined(found) for found in folds.values()]
  after = []
  for member, one in zip(folds, held_out, strict=True):
    others = _joined(v for other, found in folds.items() if other != member for v in found)
    after.append(one._replace(logit=_apply(fit(others), one.logit)))
  before, calibrated = _joined(held_out), _joined(after)
  dice = border_dice(before), border_dice(calibrated)
  entry = {"cases": count,
           "error": [adaptive_error(before), adaptive_error(calibrated)],
           "dice": list(dice),
           "curve": {"before": reliability(before), "after": reliability(calibrated)}}
  scaling = fit(_joined(voxels.values()))
  if not scaling.slope >= _FLATTEST:
    return entry | {"reason": "its probabilities do not tell its voxels from others"}
  if not cross_entropy(calibrated) < cross_entropy(before):
    return entry | {"reason": "calibration does not lower the cross-entropy of unseen cases"}
  if dice[1] < dice[0] - _LOST:
    return entry | {"reason": "calibration costs Dice near the border of unseen cases, "
                              f"{dice[0]:.3f} → {dice[1]:.3f}"}
  return entry | scaling._asdict()


def fit(voxels: Voxels) -> Scaling:
  """Finds slope and intercept of the least cross-entropy, by Newton's method.

  Args:
    voxels: of any number of cases.
  """
  z, weight = voxels.logit.astype(np.float64), voxels.weight / voxels.weight.sum()
  design_N2 = np.stack([z, np.ones_like(z)], 1)
  start = np.array([1.0, 0.0])

  def loss(theta):
    scaled = design_N2 @ theta
    return (weight @ np.logaddexp(0, np.where(voxels.positive, -scaled, scaled))
            + _RIDGE / 2 * np.square(theta - start).sum())

  theta = start
  for _ in range(_STEPS):
    p = _sigmoid(design_N2 @ theta)
    gradient = design_N2.T @ (weight * (p - voxels.positive)) + _RIDGE * (theta - start)
    hessian = (design_N2.T * (weight * p * (1 - p))) @ design_N2 + _RIDGE * np.eye(2)
    step, size = np.linalg.solve(hessian, gradient), 1.0
    while size > 1e-6 and loss(theta - size * step) > loss(theta):  # it is convex, but not a bowl
      size /= 2
    theta = theta - size * step
    if np.abs(size * step).max() < 1e-9:
      break
  return Scaling(*map(float, theta))


def reliability(voxels: Voxels, bins: int = BINS) -> list[list[float]]:
  """Computes the curve of a reliability diagram over bins of equal numbers of drawn voxels.

  As many are drawn inside of masks as outside; of equal weight, nearly all bins would be outside.

  Args:
    voxels: of any number of cases.
    bins: number of bins; those of constant probability are merged into fewer.

  Returns:
    [mean probability, share of voxels in the mask, share of the drawn voxels] of every bin that is
    not empty, by ascending probability.
  """
  order = np.argsort(voxels.logit, kind="stable")
  z, positive, weight = (np.asarray(x, np.float64)[order] for x in voxels)
  bin_N = np.arange(len(z)) * bins // len(z)
  bin_N = bin_N[np.searchsorted(z, z)]  # equal probabilities share a bin
  sums = np.stack([np.bincount(bin_N, weight * x, bins) for x in (_sigmoid(z), positive, 1.0)], 1)
  share = np.bincount(bin_N, minlength=bins) / len(z)
  return [[float(p / w), float(t / w), float(n)]
          for (p, t, w), n in zip(sums, share, strict=True) if n]


def adaptive_error(voxels: Voxels, bins: int = BINS) -> float:
  """Returns the adaptive calibration error: the mean over the bins of `reliability` of the distance
  between probability and share of voxels in the mask; 0 to 1."""
  return float(sum(n * abs(p - t) for p, t, n in reliability(voxels, bins)))


def border_dice(voxels: Voxels) -> float:
  """Returns the weighted Dice of probabilities above 0.5 with the voxels in the mask."""
  inside = voxels.logit > 0
  sizes = voxels.weight @ (inside.astype(np.float64) + voxels.positive)
  return float(2 * (voxels.weight @ (inside & voxels.positive)) / sizes)


def cross_entropy(voxels: Voxels) -> float:
  """Returns the weighted mean cross-entropy in nats."""
  z = np.where(voxels.positive, -voxels.logit, voxels.logit).astype(np.float64)
  return float(np.average(np.logaddexp(0, z), weights=voxels.weight))


def _apply(scaling: Scaling, z: np.ndarray) -> np.ndarray:
  return scaling.slope * z + scaling.intercept


def _joined(voxels: Iterable[Voxels]) -> Voxels:
  return Voxels(*(np.concatenate(parts) for parts in zip(*voxels, strict=True)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0, -z))
