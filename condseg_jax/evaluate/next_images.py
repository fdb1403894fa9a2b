"""Which unlabelled images to annotate next.

If the error of a class falls like a power of the number n of its training cases, another case
lowers it by a share of itself that is proportional to 1 / n. The expected gain of an image is

    gain = Σ error / n    over the classes

with the error 1 - predicted Dice of a class that is found in it, or 1 - soft Dice confidence where
no Dice is predicted. A class that is not found counts as missed in that share of the training cases
that have it. Images that look alike teach the same: the order is greedy, by

    gain · (distance to the nearest image before) / (a bound of all distances)

in the standardised features of the encoder, after in the k-center selection of Sener & Savarese
(arXiv:1708.00489).
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np


class Known(NamedTuple):
  """What training knew of a class.

  Attributes:
    cases: number of training cases that have it.
    share: of the cases that annotate it.
  """

  cases: int = 1
  share: float = 1.0


class Ranked(NamedTuple):
  """An image in the order of annotation.

  Attributes:
    name: its name.
    value: what was largest when it was chosen, see the module's docstring.
    gain: its expected gain.
    class_name: the class with the largest part of the gain.
  """

  name: str
  value: float
  gain: float
  class_name: str


def known_classes(scores: Mapping[str, Any], names: Sequence[str]) -> dict[str, Known]:
  """Returns what the scores of a cross-validated run say of classes; all are equal without any.

  Args:
    scores: `FoldRun.scores`; {} for a run that is none.
    names: the classes.
  """
  known = {}
  for name in names:
    dice = [entry[name] for entry in scores.get("dice", {}).values() if name in entry]
    present = sum(value is not None for value in dice)
    known[name] = Known(max(present, 1), present / len(dice)) if dice else Known()
  return known


def gains(quality: Mapping[str, Mapping[str, float]],
          known: Mapping[str, Known]) -> dict[str, float]:
  """Returns class → its part of the expected gain of an image.

  Args:
    quality: found class → see `infer.prediction.quality`.
    known: all classes.
  """
  parts = {}
  for name, (cases, share) in known.items():
    found = quality.get(name)
    error = share if found is None else 1 - found.get("predicted_dice", found["soft_dice"])
    parts[name] = error / cases
  return parts


def order(parts: Mapping[str, Mapping[str, float]],
          features: Mapping[str, Sequence[float]]) -> list[Ranked]:
  """Orders images by what they are expected to add to those before.

  Args:
    parts: image → see `gains`.
    features: image → its features, of one length.
  """
  total = {name: sum(part.values()) for name, part in parts.items()}
  names = sorted(total, key=lambda name: (-total[name], name))  # also where the values are equal
  if not names:
    return []
  gain = np.array([total[name] for name in names])
  points = np.array([features[name] for name in names], np.float64)
  spread = points.std(0)
  points = (points - points.mean(0))[:, spread > 0] / spread[spread > 0]
  # All distances are at most twice the largest from the mean.
  scale = max(2 * float(np.linalg.norm(points, axis=1).max()), 1e-12)
  nearest, ranked = np.full(len(names), scale), []
  left = np.ones(len(names), bool)
  for _ in names:
    value = np.where(left, gain * nearest / scale, -1)
    best = int(np.argmax(value))
    part = parts[names[best]]
    ranked.append(Ranked(names[best], float(value[best]), float(gain[best]),
                         max(part, key=lambda name: part[name])))
    left[best] = False
    nearest = np.minimum(nearest, np.linalg.norm(points - points[best], axis=1))
  return ranked


def to_json(ranked: Sequence[Ranked]) -> dict:
  """Returns the order, JSON-compatible."""
  return {"images": [{"name": row.name, "value": row.value, "gain": row.gain,
                      "class": row.class_name} for row in ranked]}
