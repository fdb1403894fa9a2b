"""Takes classes away from a network: its table and parameters shrink, the rest stays as it is."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.model_io.transfer import transfer
from condseg_jax.models.class_axes import class_axes
from condseg_jax.models.class_axes import ClassAxes


def without_classes(bundle: Bundle, names: Sequence[str]) -> Bundle:
  """Returns a network without some of its classes, and without its ONNX graphs.

  Arrays with entries per class lose those of these classes; all others are the same bit by bit.

  Args:
    bundle: the network.
    names: classes to take away.

  Raises:
    InputError: a class is not in the table, or none would be left.
  """
  record = bundle.record
  gone = {record.table.index(name) for name in names}
  kept = [i for i in range(len(record.table)) if i not in gone]
  if not kept:
    raise InputError("classes", "none would be left", "keep one at least", usage=True)
  smaller = _record(record, kept)
  axes = [class_axes(r.config.model, r.config.conditioning, len(r.table), r.plan.channels)
          for r in (record, smaller)]
  first, *others = (_shrunk(one, axes[0], axes[1], kept)
                    for one in (bundle.variables, *bundle.others))
  return Bundle(smaller, first["params"], _facts(bundle.facts, smaller.table.names),
                statistics=first.get("statistics", {}), others=tuple(others))


def _shrunk(variables: Mapping[str, Any], before: ClassAxes, after: ClassAxes,
            kept: Sequence[int]) -> dict[str, Any]:
  """Returns the variables of one network for the classes that are kept, by their ids before."""
  source = jax.device_get(variables)
  target = {}
  for name, array in traverse_util.flatten_dict(source, sep="/").items():
    shape = list(np.shape(array))
    if name in before.axes:
      shape[before.axes[name]] -= before.classes - after.classes
    target[name] = np.zeros(shape, np.float32)
  done = transfer(source, traverse_util.unflatten_dict(target, sep="/"), source_classes=before,
                  target_classes=after, rows=dict(enumerate(kept)))
  if done.left:
    raise AssertionError(f"{done.left} cannot be taken over")  # the two networks differ in K alone
  return done.variables


def _record(record: ModelRecord, kept: Sequence[int]) -> ModelRecord:
  table = record.table
  classes = tuple(table.classes[i] for i in kept)
  names = {c.name for c in classes}
  presets = {key: tuple(n for n in group if n in names) for key, group in table.presets.items()}
  presets = {key: group for key, group in presets.items() if group}
  return record._replace(
      config=_config(record.config, kept, names),
      table=ClassTable(classes, presets, table.capacity,
                       tuple(pair for pair in table.overlapping if set(pair) <= names)),
      priors={name: value for name, value in record.priors.items() if name in names},
      cleaning={name: value for name, value in record.cleaning.items() if name in names})


def _config(config: Config, kept: Sequence[int], names: set[str]) -> Config:
  """Returns a config that names no class that is gone."""
  of = lambda group: [name for name in group if normal_name(name) in names]
  data, loss, texts = config.data, config.loss, config.conditioning.texts
  presets = {key: of(group) for key, group in data.presets.items()}
  return config.override({
      "data.classes": of(data.classes), "data.include_classes": of(data.include_classes),
      "data.overlapping": [pair for pair in data.overlapping if len(of(pair)) == len(pair)],
      "data.presets": {key: group for key, group in presets.items() if group},
      "data.lateral_axes": {name: data.lateral_axes[name] for name in of(data.lateral_axes)},
      "loss.alpha": {name: loss.alpha[name] for name in of(loss.alpha)},
      "conditioning.texts": [texts[i] for i in kept] if texts else []})


def _facts(facts: Any, names: Sequence[str]) -> dict[str, Any]:
  """Returns the facts on the model card that are about the classes that are left."""
  out = dict(facts)
  if facts.get("datasets"):
    out["datasets"] = [{**d, "annotated": [n for n in d["annotated"] if n in names]}
                       for d in facts["datasets"]]
  if facts.get("held_out"):
    dice = {name: value for name, value in facts["held_out"]["dice"].items() if name in names}
    out["held_out"] = {"mean_dice": float(np.mean(list(dice.values()))), "dice": dice} if (
        dice) else None
  return out
