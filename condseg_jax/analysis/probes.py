"""Linear probes: what a linear map can read off the features of a layer.

After Alain & Bengio, "Understanding intermediate layers using linear classifier probes", 2016. The
maps are least-squares ones with a small ridge; they are fitted on some images and scored on others.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED

RIDGE = 1e-3  # times the squared weights, for standardised features and the mean squared error
FOLDS = 5


class MaskScore(NamedTuple):
  """How well a linear map of the features finds a mask in images it was not fitted on."""

  auc: float
  dice: float


def ridge(x_VC: np.ndarray, y_VT: np.ndarray, strength: float = RIDGE) -> Callable:
  """The linear map of least squares with a penalty, x → y [V, T].

      min_W,b  (1/V) ‖ Z W + b - Y ‖² + strength ‖W‖²,   Z the standardised columns of X

  Columns that do not vary are left out.
  """
  x, y = np.asarray(x_VC, np.float64), np.asarray(y_VT, np.float64)
  mean, sd, middle = x.mean(0), x.std(0), y.mean(0)
  scale = np.where(sd > 1e-9 * (np.abs(mean) + 1e-30), 1 / np.maximum(sd, 1e-300), 0.0)
  z = (x - mean) * scale
  gram = z.T @ z / len(z) + strength * np.eye(z.shape[1])
  weights = scale[:, None] * np.linalg.solve(gram, z.T @ (y - middle) / len(z))
  return lambda new_VC: (new_VC - mean) @ weights + middle


def auc(score_V: np.ndarray, positive_V: np.ndarray) -> float | None:
  """Area under the ROC curve: P(score of a positive > score of a negative), ties count a half.

  None where there is no positive or no negative one.
  """
  n, m = int(positive_V.sum()), int((~positive_V).sum())
  if n == 0 or m == 0:
    return None
  ranks = stats.rankdata(score_V)
  return float((ranks[positive_V].sum() - n * (n + 1) / 2) / (n * m))


def dice(found_V: np.ndarray, positive_V: np.ndarray) -> float:
  """2 |A ∩ B| / (|A| + |B|); 0 where both are empty."""
  return float(2 * (found_V & positive_V).sum() / max(found_V.sum() + positive_V.sum(), 1))


def best_threshold(score_V: np.ndarray, positive_V: np.ndarray) -> float:
  """The threshold with the highest Dice of `score >= threshold`, midway between two scores."""
  order = np.argsort(-score_V)
  scores, hits = score_V[order], np.cumsum(positive_V[order])
  values = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
  last = np.append(scores[:-1] != scores[1:], True)  # equal scores are found together
  best = np.argmax(np.where(last, values, -1))
  return float((scores[best] + scores[min(best + 1, len(scores) - 1)]) / 2)


def class_probe(pooled_KNC: np.ndarray, folds: int = FOLDS) -> float | None:
  """How often a linear classifier tells which class was asked for; chance is 1 / K.

  An image is in one fold with all its classes. Where the class changes nothing, the classifier says
  the same under every class and is right in exactly 1 / K of the answers.

  Args:
    pooled_KNC: features of N images under K classes, averaged over space.

  Returns:
    None for fewer than two images.
  """
  k, n, channels = pooled_KNC.shape
  if n < 2:
    return None
  right = 0
  for fit, held in splits(n, folds):
    targets = np.repeat(np.eye(k), len(fit), axis=0)
    model = ridge(pooled_KNC[:, fit].reshape(-1, channels), targets)
    answers = model(pooled_KNC[:, held].astype(np.float64)).argmax(-1)
    right += int((answers == np.arange(k)[:, None]).sum())
  return right / (k * n)


def mask_probe(features_NVC: np.ndarray, mask_NV: np.ndarray, folds: int = 2) -> MaskScore | None:
  """How well a linear map from the features of a voxel finds a mask.

  Args:
    features_NVC: V voxels of N images.
    mask_NV: three-valued; unlabelled voxels are left out.

  Returns:
    Means over the folds, the voxels of all images of a fold scored together; the threshold of the
    Dice is the best one for the images that the map was fitted on. None where no fold has voxels of
    both kinds to fit and to score.
  """
  scores = []
  for fit, held in splits(len(mask_NV), folds):
    (x, y), (new_x, new_y) = (_labelled(features_NVC[part], mask_NV[part]) for part in (fit, held))
    if min(y.sum(), (~y).sum(), new_y.sum(), (~new_y).sum()) == 0:
      continue
    model = ridge(x, y[:, None])
    threshold, score = best_threshold(model(x)[:, 0], y), model(new_x)[:, 0]
    scores.append(MaskScore(auc(score, new_y), dice(score >= threshold, new_y)))
  return MaskScore(*map(float, np.mean(scores, axis=0))) if scores else None


def splits(n: int, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Indices (fit, held out) of n images, each held out once; image i is in fold i mod `folds`."""
  folds = min(folds, n)
  if folds < 2:
    return
  for fold in range(folds):
    held = np.arange(n) % folds == fold
    yield np.flatnonzero(~held), np.flatnonzero(held)


def _labelled(features_NVC, mask_NV) -> tuple[np.ndarray, np.ndarray]:
  known = mask_NV != UNLABELLED
  return features_NVC[known].astype(np.float64), mask_NV[known] == POSITIVE
