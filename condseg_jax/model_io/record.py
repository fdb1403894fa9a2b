"""The model record: everything a checkpoint or bundle stores about its network but the arrays."""

from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from condseg_jax import config as config_lib
from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.plan import Plan

MAX_WINDOW = 512**3  # voxels of the network's input
FLOAT32_MAX = float(np.finfo(np.float32).max)
SPACINGS = (1e-6, 1e6)  # mm


class ModelRecord(NamedTuple):
  """Everything that defines a trained network besides its parameters.

  Attributes:
    config: config of the run.
    table: the classes.
    plan: preprocessing of images to network input.
    training: pooled fingerprint of the training set; {} in older checkpoints.
    priors: class → frequency and location in the training masks (see `data.priors`).
    cleaning: class → fields of `infer.postprocess.ComponentFilter`, chosen on held-out cases.
  """

  config: Config
  table: ClassTable
  plan: Plan
  training: Mapping[str, Any] = {}
  priors: Mapping[str, Any] = {}
  cleaning: Mapping[str, Any] = {}

  def to_json(self) -> dict[str, Any]:
    """Returns plain containers; `version` is the version of the setting names."""
    return {"version": config_lib.VERSION, "config": self.config.to_dict(),
            "table": self.table.to_json(), "plan": self.plan.to_json(),
            "training": dict(self.training), "priors": dict(self.priors),
            "cleaning": dict(self.cleaning)}

  @classmethod
  def from_json(cls, tree: Mapping[str, Any]) -> "ModelRecord":
    """Restores a record written by `to_json` of this or an older version.

    Raises:
      ValueError: the record has a newer version or invalid fields.
      KeyError: a field is missing.
    """
    version = tree.get("version", 1)
    if not isinstance(version, int) or version > config_lib.VERSION:
      raise ValueError(f"settings of version {version}, this program reads up to "
                       f"{config_lib.VERSION}: update condseg_jax")
    return cls(Config.from_dict(tree["config"], version), ClassTable.from_json(tree["table"]),
               Plan.from_json(tree["plan"]),
               *(tree.get(key, {}) for key in ("training", "priors", "cleaning")))


def check_record(record: ModelRecord) -> None:
  """Checks a record that may not come from a training, before a network is built from it.

  Raises:
    ValueError: a value that no training writes and prediction cannot use.
    TypeError: a value of another type.
  """
  _check_plan(record.plan)
  axes = len(record.plan.spacing)
  for key in ("native_spacing", "native_field"):
    for end in ("min", "max") if key in record.training else ():
      if not _are_numbers(record.training[key][end], axes, above=0):
        raise ValueError(f"training: {key} is not {axes} positive numbers")
  if not _are_numbers(record.training.get("oblique_degrees", {"max": [0.0]})["max"], 1):
    raise ValueError("training: oblique_degrees is not a number")
  if not _are_numbers([(record.training.get("intensity") or {}).get("p0.5", 0.0)], 1):
    raise ValueError("training: intensity is not a number")
  for name, prior in record.priors.items():
    location = np.asarray(prior["location"], np.float32)
    if location.ndim != axes or min(location.shape) < 2 or not np.isfinite(location).all() or (
        location.min() < 0):
      raise ValueError(f"priors: the location of {name} is not {axes}-D, finite and positive")


def _check_plan(plan: Plan) -> None:
  axes = len(plan.spacing)
  if not _are_numbers(plan.spacing, axes) or not all(
      SPACINGS[0] <= value <= SPACINGS[1] for value in plan.spacing):
    raise ValueError(f"plan: spacing {plan.spacing} is not in [{SPACINGS[0]:g}, {SPACINGS[1]:g}]")
  if not _are_numbers((plan.low, plan.high, plan.mean, plan.sd), 4):
    raise ValueError("plan: intensity statistics are not finite numbers")
  if max(map(abs, (plan.low, plan.high, plan.mean, plan.sd))) > FLOAT32_MAX:
    raise ValueError(f"plan: intensity statistics are beyond {FLOAT32_MAX:.2g}, the limit of "
                     "float32")
  if plan.sd <= 0 or plan.low > plan.high:
    raise ValueError(f"plan: sd {plan.sd} is not positive, or low {plan.low} exceeds high "
                     f"{plan.high}")
  if not all(type(size) is int for size in plan.subvolume):
    raise ValueError(f"plan: subvolume {plan.subvolume} is not whole numbers")
  if math.prod(plan.subvolume) > MAX_WINDOW:
    raise ValueError(f"plan: subvolume {plan.subvolume} has more than {MAX_WINDOW} voxels")


def _are_numbers(values: Any, count: int, above: float = -math.inf) -> bool:
  """Returns whether values are a sequence of `count` finite numbers, all above a bound."""
  return isinstance(values, list | tuple) and len(values) == count and all(
      isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
      and value > above for value in values)
