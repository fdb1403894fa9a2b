"""The record of a model: what a checkpoint or a bundle says of its network besides the arrays."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from condseg_jax.classes import ClassTable
from condseg_jax.plan import Plan


class ModelRecord(NamedTuple):
  """What a checkpoint says of its model besides the arrays.

  Attributes:
    config: of the run.
    table: the classes.
    plan: how images become input.
    training: the pooled fingerprint of the training set; {} in older checkpoints.
    priors: class → frequency and location in the training masks (see `data.priors`).
    cleaning: class → fields of `infer.postprocess.ComponentFilter`, chosen on held-out cases.
  """

  config: Mapping[str, Any]
  table: ClassTable
  plan: Plan
  training: Mapping[str, Any] = {}
  priors: Mapping[str, Any] = {}
  cleaning: Mapping[str, Any] = {}

  def to_json(self) -> dict:
    return {"config": dict(self.config), "table": self.table.to_json(),
            "plan": self.plan.to_json(), "training": dict(self.training),
            "priors": dict(self.priors), "cleaning": dict(self.cleaning)}

  @classmethod
  def from_json(cls, tree: Mapping) -> "ModelRecord":
    return cls(tree["config"], ClassTable.from_json(tree["table"]), Plan.from_json(tree["plan"]),
               *(tree.get(key, {}) for key in ("training", "priors", "cleaning")))
