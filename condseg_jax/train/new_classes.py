"""New classes beside those of a network: their place in the table, and what they begin with."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import traverse_util
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import distinct_codes
from condseg_jax.classes import hue
from condseg_jax.models.class_axes import ClassAxes

_DECODERS = "params/decoders/"


def grown(ours: ClassTable, theirs: ClassTable) -> ClassTable:
  """Returns their table, unchanged, followed by the classes of ours that are not in it."""
  new = [c for c in ours.classes if c.name not in theirs.names]
  names = (*theirs.names, *(c.name for c in new))
  capacity = max(theirs.capacity, len(names))
  codes = distinct_codes(names, capacity, {c.name: c.code for c in theirs.classes})
  added = (dataclasses.replace(c, code=codes[i], color=hue(i))
           for i, c in enumerate(new, len(theirs)))
  pairs = {*theirs.overlapping, *ours.overlapping}
  return ClassTable((*theirs.classes, *added), {**theirs.presets, **ours.presets}, capacity,
                    tuple(sorted(pairs)))


def with_means(variables: Mapping[str, Any], axes: ClassAxes, new: Sequence[int],
               known: Sequence[int]) -> dict[str, Any]:
  """Returns variables in which what belongs to a new class is the mean over the known ones.

  From there it is learned faster than from random numbers, or from one of the known classes, whose
  decoding is sure of itself. A mean of decoders would be no decoder: one of its own stays as it is,
  random.

  Args:
    variables: of the network.
    axes: its arrays with entries per class.
    new: ids of the new classes.
    known: ids of the known ones.
  """
  out = {}
  for name, array in traverse_util.flatten_dict(variables, sep="/").items():
    if name in axes.axes and not name.startswith(_DECODERS):
      array = np.array(array)
      rows = np.moveaxis(array, axes.axes[name], 0)  # a view
      first = len(rows) - axes.classes
      rows[[first + i for i in new]] = rows[[first + i for i in known]].mean(0)
    out[name] = array
  return traverse_util.unflatten_dict(out, sep="/")
