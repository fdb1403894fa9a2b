"""The record of a model: what a checkpoint or a bundle says of its network besides the arrays."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from condseg_jax import config as config_lib
from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.plan import Plan


class ModelRecord(NamedTuple):
  """What belongs to a network besides its parameters.

  Attributes:
    config: of the run.
    table: the classes.
    plan: how images become input.
    training: the pooled fingerprint of the training set; {} in older checkpoints.
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
    """Plain containers; `version` is that of the names of the settings."""
    return {"version": config_lib.VERSION, "config": self.config.to_dict(),
            "table": self.table.to_json(), "plan": self.plan.to_json(),
            "training": dict(self.training), "priors": dict(self.priors),
            "cleaning": dict(self.cleaning)}

  @classmethod
  def from_json(cls, tree: Mapping[str, Any]) -> "ModelRecord":
    """The record that `to_json` made, of this version or an older one.

    Raises:
      ValueError: it is of a newer version, or its parts are not what they should be.
      KeyError: a part is missing.
    """
    version = tree.get("version", 1)
    if not isinstance(version, int) or version > config_lib.VERSION:
      raise ValueError(f"settings of version {version}, this program reads up to "
                       f"{config_lib.VERSION}: update condseg_jax")
    return cls(Config.from_dict(tree["config"], version), ClassTable.from_json(tree["table"]),
               Plan.from_json(tree["plan"]),
               *(tree.get(key, {}) for key in ("training", "priors", "cleaning")))
