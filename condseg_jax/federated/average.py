"""The mean of what the sites have learned in a round.

FedAvg (McMahan et al., AISTATS 2017), weighted by annotated samples. Parameters that belong to one
class alone are means over the sites that annotate it: at all others they have changed by noise.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from condseg_jax.models.class_axes import ClassAxes

Arrays = Mapping[str, np.ndarray]  # path of an array in the variables → its values


@dataclasses.dataclass(frozen=True)
class Update:
  """What a site sends after a round.

  Attributes:
    arrays: its parameters.
    samples: class → number of annotated samples that it has learned from in this round.
    dice: class → mean soft Dice on them, with augmentation.
  """

  arrays: Arrays
  samples: Mapping[str, int]
  dice: Mapping[str, float]


def average(before: Arrays, updates: Mapping[str, Update], axes: ClassAxes,
            names: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Returns the parameters after a round.

      θ = Σ_s w_s θ_s / Σ_s w_s,   w_s = Σ_k n_sk

  with the n_sk samples of class k at site s. Entries of class k alone have the weights n_sk, and
  stay as they are where no site has samples.

  Args:
    before: the parameters at the start of the round.
    updates: name of a site → its update, checked by `fault`.
    axes: arrays with entries per class.
    names: the classes in the order of their ids.
  """
  count_SK = np.array([[u.samples.get(name, 0) for name in names] for u in updates.values()],
                      np.float64)
  out = {}
  for name, old in before.items():
    values = np.stack([np.asarray(u.arrays[name], np.float64) for u in updates.values()])
    mean = np.average(values, axis=0, weights=count_SK.sum(1))
    if (axis := axes.axes.get(name)) is not None:
      rows, new = np.moveaxis(mean, axis, 0), np.moveaxis(values, axis + 1, 0)  # views
      first = len(rows) - axes.classes
      for k, weights in enumerate(count_SK.T):
        rows[first + k] = (np.average(new[first + k], axis=0, weights=weights) if weights.any()
                           else np.moveaxis(old, axis, 0)[first + k])
    out[name] = mean.astype(np.float32)
  return out


def fault(update: Update, before: Arrays, names: tuple[str, ...]) -> str:
  """Returns why an update is left out of its round, or "".

  Args:
    update: what a site sent, which nobody has checked.
    before: the parameters at the start of the round.
    names: the classes.
  """
  if set(update.arrays) != set(before):
    return "its parameters are those of another network"
  for name, old in before.items():
    new = update.arrays[name]
    if not isinstance(new, np.ndarray) or new.shape != old.shape or new.dtype != np.float32:
      return f"{name} has another shape or type"
    if not np.isfinite(new).all():
      return f"{name} is not finite"
  if not set(update.samples) <= set(names) or not all(
      _is(value, int) and value >= 0 for value in update.samples.values()):
    return "its numbers of samples are none"
  if not any(update.samples.values()):
    return "it has not learned from a sample"
  if not set(update.dice) <= set(names) or not all(
      _is(value, float) and 0 <= value <= 1 for value in update.dice.values()):
    return "its Dice is not between 0 and 1"
  return ""


def _is(value: Any, kind: type[int] | type[float]) -> bool:
  return type(value) is kind and math.isfinite(float(value))
