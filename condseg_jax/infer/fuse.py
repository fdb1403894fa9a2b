"""Per-class probabilities to one label map, or to one mask per class."""

from collections.abc import Iterable

import numpy as np

from condseg_jax.errors import InputError

FUSIONS = ("argmax", "softmax", "independent")


def label_dtype(class_ids) -> type:
  """uint8, or uint16 where a label value passes 255."""
  return np.uint8 if max(class_ids) + 1 <= 255 else np.uint16


def best_class(planes: Iterable[np.ndarray], class_ids, threshold: float) -> np.ndarray:
  """The most probable class where its probability reaches the threshold, else background.

  The planes are taken one by one and only the best so far is kept, so memory does not grow with
  the number of classes. Of equal probabilities the earlier class wins.

  Args:
    planes: probability of each class, [*shape].
    class_ids: their ids.
    threshold: in [0, 1].

  Returns:
    Label map [*shape]: class id + 1, or 0.
  """
  label = best = None
  for plane, class_id in zip(planes, class_ids, strict=True):
    if label is None:
      label = np.zeros(plane.shape, label_dtype(class_ids))
      best = np.full(plane.shape, -1.0, np.float32)
    better = (plane >= threshold) & (plane > best)
    label[better] = class_id + 1
    best[better] = plane[better]
  return label


def exclusive_probabilities(planes: np.ndarray) -> np.ndarray:
  """Softmax over the classes and background: the classes as alternatives, not as questions apart.

      q_k = o_k / (1 + Σ_j o_j),   o_k = p_k / (1 - p_k)

  which is the softmax of the logits with a background logit of 0.

  Args:
    planes: [K, *shape], independent probabilities.

  Returns:
    [K, *shape]; together with the background's 1 - Σ q they add up to 1.
  """
  p = np.clip(planes, 0, 1 - 1e-6).astype(np.float32)
  odds = p / (1 - p)
  return odds / (1 + odds.sum(0))


def check_fusion(name: str) -> None:
  """Raises InputError for a fusion that does not exist."""
  if name not in FUSIONS:
    raise InputError(f"fusion {name!r}", "is not known", f"one of {', '.join(FUSIONS)}", usage=True)
