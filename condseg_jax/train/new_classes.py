"""New classes beside those of a network: their place in the table, and what they begin with."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import distinct_codes
from condseg_jax.classes import hue
from condseg_jax.losses import make_objective
from condseg_jax.models.class_axes import ClassAxes
from condseg_jax.models.network import class_logits
from condseg_jax.train.setup import Setup

BATCHES = 8  # read to compare a new class with those that there are


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


def likest(setup: Setup, variables: Mapping[str, Any], new: Sequence[int],
           old: Sequence[int]) -> dict[int, int]:
  """Returns new class → the old one whose decoding fits its masks best, by the objective.

  Args:
    setup: parts of the run; the first batches of its stream are read.
    variables: of the network, with the old classes.
    new: ids of the new classes.
    old: ids of the old ones.
  """
  objective = make_objective(setup.config.loss)

  @jax.jit
  def loss(image, mask, class_id_B):
    logits = class_logits(setup.model, variables, image, class_id_B[:, None])
    return objective(logits, mask[..., None])[:, 0]

  sums = {k: np.zeros(len(old)) for k in new}
  with contextlib.closing(setup.batches()) as batches:
    for _ in range(BATCHES):
      batch = next(batches)
      for n in range(batch.class_id.shape[1]):
        ids, annotated = batch.class_id[:, n], batch.beta[:, n] == 1
        if not (annotated & np.isin(ids, new)).any():
          continue
        mask = jnp.asarray(batch.mask[..., n])
        found_KB = np.stack([loss(batch.image, mask, np.full(len(ids), k, np.int32))
                             for k in old])
        for b in np.flatnonzero(annotated & np.isin(ids, new)):
          sums[int(ids[b])] += found_KB[:, b]
  return {k: old[int(np.argmin(total))] for k, total in sums.items()}


def with_copies(variables: Mapping[str, Any], axes: ClassAxes,
                models: Mapping[int, int]) -> dict[str, Any]:
  """Returns variables in which entries of some classes are copies of those of others.

  Args:
    variables: of the network.
    axes: its arrays with entries per class.
    models: id of a class → id of the class that it begins as.
  """
  out = {}
  for name, array in traverse_util.flatten_dict(variables, sep="/").items():
    if name in axes.axes:
      array = np.array(array)
      rows = np.moveaxis(array, axes.axes[name], 0)  # a view
      for to, by in models.items():
        rows[len(rows) - axes.classes + to] = rows[len(rows) - axes.classes + by]
    out[name] = array
  return traverse_util.unflatten_dict(out, sep="/")
