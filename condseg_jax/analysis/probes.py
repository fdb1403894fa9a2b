"""Linear probes: the information that a linear map can extract from the features of a layer.

After Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016. The
maps are ridge regressions, fitted on some images and scored on others.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED

RIDGE = 1e-3  # weight of the squared weights against the mean squared error
FOLDS = 5


class MaskScore(NamedTuple):
  """Scores of a linear probe for a mask on held-out images.

  Attributes:
    auc: area under the ROC curve.
    dice: Dice of the thresholded probe.
  """

  auc: float
  dice: float


def ridge(x_VC: np.ndarray, y_VT: np.ndarray,
          strength: float = RIDGE) -> Callable[[np.ndarray], np.ndarray]:
  """Fits a ridge regression.

      min_W,b  (1/V) ‖ Z W + b - Y ‖² + strength ‖W‖²,   Z the standardised columns of X

  Constant columns are ignored.

  Args:
    x_VC: features of V voxels.
    y_VT: targets.
    strength: weight of the penalty.

  Returns:
    The fitted map from features [V, C] to targets [V, T].
  """
  x, y = np.asarray(x_VC, np.float64), np.asarray(y_VT, np.float64)
  mean, sd, middle = x.mean(0), x.std(0), y.mean(0)
  scale = np.where(sd > 1e-9 * (np.abs(mean) + 1e-30), 1 / np.maximum(sd, 1e-300), 0.0)
  z = (x - mean) * scale
  gram = z.T @ z / len(z) + strength * np.eye(z.shape[1])
  weights = scale[:, None] * np.linalg.solve(gram, z.T @ (y - middle) / len(z))
  return lambda new_VC: (new_VC - mean) @ weights + middle


def auc(score_V: np.ndarray, positive_V: np.ndarray) -> float | None:
  """Computes the area under the ROC curve: P(score of a positive > score of a negative) + ties / 2.

  Args:
    score_V: scores of V voxels.
    positive_V: bool, the mask.

  Returns:
    None without positives or without negatives.
  """
  n, m = int(positive_V.sum()), int((~positive_V).sum())
  if n == 0 or m == 0:
    return None
  ranks = stats.rankdata(score_V)
  return float((ranks[positive_V].sum() - n * (n + 1) / 2) / (n * m))


def dice(predicted_V: np.ndarray, positive_V: np.ndarray) -> float:
  """Computes 2 |A ∩ B| / (|A| + |B|) of two bool masks; 0 if both are empty."""
  return float(2 * (predicted_V & positive_V).sum() / max(predicted_V.sum() + positive_V.sum(), 1))


def best_threshold(score_V: np.ndarray, positive_V: np.ndarray) -> float:
  """Returns the threshold with the highest Dice of `score >= threshold`, between two scores."""
  order = np.argsort(-score_V)
  scores, hits = score_V[order], np.cumsum(positive_V[order])
  values = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
  last = np.append(scores[:-1] != scores[1:], True)  # a threshold cannot separate equal scores
  best = np.argmax(np.where(last, values, -1))
  return float((scores[best] + scores[min(best + 1, len(scores) - 1)]) / 2)


def class_probe(pooled_KNC: np.ndarray, folds: int = FOLDS) -> float | None:
  """Computes the accuracy of a linear classifier for the requested class; chance is 1 / K.

  An image is in one fold with all its classes. If the class changes nothing, the classifier gives
  the same prediction under every class, and the accuracy is exactly 1 / K.

  Args:
    pooled_KNC: features of N images under K classes, averaged over space.
    folds: of the cross-validation over images.

  Returns:
    None for fewer than two images.
  """
  k, n, channels = pooled_KNC.shape
  if n < 2:
    return None
  correct = 0
  for fit, held in splits(n, folds):
    targets = np.repeat(np.eye(k), len(fit), axis=0)
    model = ridge(pooled_KNC[:, fit].reshape(-1, channels), targets)
    predictions = model(pooled_KNC[:, held].astype(np.float64)).argmax(-1)
    correct += int((predictions == np.arange(k)[:, None]).sum())
  return correct / (k * n)


def mask_probe(features_NVC: np.ndarray, mask_NV: np.ndarray, folds: int = 2) -> MaskScore | None:
  """Scores a linear classifier of voxels for a mask.

  Args:
    features_NVC: features of V voxels of N images.
    mask_NV: three-valued; unlabelled voxels are ignored.
    folds: of the cross-validation over images.

  Returns:
    Means over the folds, each scored on all its voxels together. The threshold for the Dice is the
    best one on the images that the map was fitted on. None if no fold has positive and negative
    voxels both to fit and to score.
  """
  scores = []
  for fit, held in splits(len(mask_NV), folds):
    (x, y), (new_x, new_y) = (_labelled(features_NVC[ids], mask_NV[ids]) for ids in (fit, held))
    if min(y.sum(), (~y).sum(), new_y.sum(), (~new_y).sum()) == 0:
      continue
    model = ridge(x, y[:, None])
    threshold, score = best_threshold(model(x)[:, 0], y), model(new_x)[:, 0]
    scores.append(MaskScore(auc(score, new_y), dice(score >= threshold, new_y)))
  return MaskScore(*map(float, np.mean(scores, axis=0))) if scores else None


def splits(n: int, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields indices (fit, held out) of n images; image i is held out in fold i mod `folds`."""
  folds = min(folds, n)
  if folds < 2:
    return
  for fold in range(folds):
    held = np.arange(n) % folds == fold
    yield np.flatnonzero(~held), np.flatnonzero(held)


def _labelled(features_NVC: np.ndarray, mask_NV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  known = mask_NV != UNLABELLED
  return features_NVC[known].astype(np.float64), mask_NV[known] == POSITIVE
