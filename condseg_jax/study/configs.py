"""The config of a training: a file of `experiments/configs` plus the overrides of a study."""

from pathlib import Path

from condseg_jax.config import Conditioning
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.study.declare import Member
from condseg_jax.study.declare import module_function


def member_config(member: Member, experiments, *, seed: int, root, cache) -> Config:
  """Builds the config of one training.

  Args:
    member: config file and overrides.
    experiments: folder with `configs/`.
    seed: seed of the training.
    root: prepared training data.
    cache: cache folder for prepared data; nothing should need preparing at this point.

  Raises:
    InputError: unknown file or setting, or an invalid value.
  """
  path = Path(experiments) / "configs" / f"{member.config}.py"
  if not path.exists():
    raise InputError(path, "does not exist", "name a file in experiments/configs", usage=True)
  tree = module_function(path, "get_config")().copy_and_resolve_references().to_dict()
  places = {"data.root": str(root), "data.cache": str(cache), "seed": seed}
  return Config.from_dict(tree).override({**member.overrides, **places})


def mechanism_of(conditioning: Conditioning) -> str:
  """Describes how a network is conditioned on the class."""
  if conditioning.position in ("none", "per_class_decoders"):
    return conditioning.position
  if conditioning.mechanism == "output":
    return "output"
  return f"{conditioning.mechanism} {conditioning.vector}"
