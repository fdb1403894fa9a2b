"""The model record: everything a checkpoint or bundle stores about its network but the arrays."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from condseg_jax import config as config_lib
from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.plan import Plan


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
