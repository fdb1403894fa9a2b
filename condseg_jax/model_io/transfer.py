"""Takes over parameters of one network into another: a pure function on their trees."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from flax import traverse_util
import numpy as np

from condseg_jax.models.class_axes import ClassAxes
from condseg_jax.models.unet import kind_and_level
from condseg_jax.models.unet import PARTS

NO_CLASSES = ClassAxes(0, {})


class Transfer(NamedTuple):
  """What was taken over.

  Attributes:
    variables: those of the target with what was taken; float32 arrays of NumPy.
    taken: paths of arrays taken over, at least for the classes that both have.
    left: path of an array that was wanted and is as it was in the target → why.
    unused: paths of wanted arrays of the source for which the target has no place.
  """

  variables: dict[str, Any]
  taken: tuple[str, ...]
  left: Mapping[str, str]
  unused: tuple[str, ...]


def transfer(source: Mapping[str, Any], target: Mapping[str, Any], *,
             source_classes: ClassAxes = NO_CLASSES, target_classes: ClassAxes = NO_CLASSES,
             rows: Mapping[int, int] | None = None,
             wanted: Callable[[str], bool] | None = None) -> Transfer:
  """Takes arrays of the source whose path and shape are those of an array of the target.

  Of an array with entries per class, those of the classes that both have are taken; the entries of
  other classes are left as they are in the target. Values are copied bit by bit, but for the head
  `dynamic` with one-hot vectors in networks of different numbers of classes, where they are scaled
  so that the logits are the same up to rounding.

  Args:
    source: variables of the one network, as `model.init` returns them.
    target: variables of the other.
    source_classes: arrays of the source with entries per class, see `class_axes`.
    target_classes: the same of the target.
    rows: id of a class in the target → its id in the source.
    wanted: whether an array is to be taken, by its path, e.g. `params/stem/conv/kernel`; None for
      all arrays.
  """
  have = traverse_util.flatten_dict(source, sep="/")
  out = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(target,
                                                                             sep="/").items()}
  taken, left = [], {}
  for name in filter(wanted, out):  # None lets every name pass
    if name not in have:
      left[name] = "the source has none"
      continue
    found, reason = _merged(np.asarray(have[name]), out[name], name, source_classes,
                            target_classes, rows or {})
    if reason:
      left[name] = reason
    else:
      out[name] = found
      taken.append(name)
  unused = tuple(name for name in filter(wanted, have) if name not in out)
  return Transfer(traverse_util.unflatten_dict(out, sep="/"), tuple(taken), left, unused)


def of_encoder(name: str) -> bool:
  """Returns whether an array, given by its path in the variables, belongs to the encoder."""
  place = kind_and_level(name.split("/")[1])
  return place is not None and PARTS[place[0]] == "encoder"


def _merged(have: np.ndarray, here: np.ndarray, name: str, source: ClassAxes, target: ClassAxes,
            rows: Mapping[int, int]) -> tuple[np.ndarray, str]:
  """Returns the array for the target, and "" or why nothing was taken."""
  axis = target.axes.get(name)
  if axis != source.axes.get(name):
    return here, "has entries per class in one of the networks only"
  if axis is None:
    return have, "" if have.shape == here.shape else _differ(have.shape, here.shape)
  shared = here.shape[axis] - target.classes  # entries before those of the classes
  shape = list(have.shape)
  shape[axis] += target.classes - source.classes
  if tuple(shape) != here.shape:
    return here, _differ(tuple(shape), here.shape)
  if not rows:
    return here, "no class of the source is among those of this network"
  old, new = np.moveaxis(have, axis, 0), np.moveaxis(here.copy(), axis, 0)
  new[:shared] = old[:shared]
  # The layers of a `heads.DynamicHead` read a concatenation with a one-hot vector over the root of
  # its length.
  dynamic = shared and name.startswith("params/head/")
  factor = np.float32(np.sqrt(target.classes / source.classes) if dynamic else 1.0)
  for to, by in rows.items():
    new[shared + to] = factor * old[shared + by] if factor != 1 else old[shared + by]
  return np.ascontiguousarray(np.moveaxis(new, 0, axis)), ""


def _differ(have: tuple[int, ...], here: tuple[int, ...]) -> str:
  return f"its shape is {have} in the source, {here} here"
