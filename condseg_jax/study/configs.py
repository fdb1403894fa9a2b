"""The config of a training: a file of `experiments/configs`, and what a study changes in it."""

from collections.abc import Mapping
import copy
from pathlib import Path

from condseg_jax.cli.train import plain_config
from condseg_jax.errors import InputError
from condseg_jax.study.declare import Member
from condseg_jax.study.declare import module_function


def member_config(member: Member, experiments, *, seed: int, root, cache) -> dict:
  """Plain containers, as `train` takes them.

  Args:
    member: config file and overrides.
    experiments: folder with `configs/`.
    seed: of the training.
    root: what it learns from.
    cache: where nothing should have to be prepared any more.

  Raises:
    InputError: no such file, no such field, a value of another kind.
  """
  path = Path(experiments) / "configs" / f"{member.config}.py"
  if not path.exists():
    raise InputError(path, "does not exist", "name a file in experiments/configs", usage=True)
  config = plain_config(module_function(path, "get_config", experiments)())
  places = {"data.root": str(root), "data.cache": str(cache), "seed": seed}
  return with_overrides(config, {**member.overrides, **places})


def with_overrides(config: Mapping, overrides: Mapping[str, object]) -> dict:
  """A config with other values; a dict is replaced as a whole.

  Raises:
    InputError: a field that the config does not have, or a value of another kind.
  """
  config = copy.deepcopy(dict(config))
  for dotted, value in overrides.items():
    *parents, field = dotted.split(".")
    tree = config
    for parent in parents:
      tree = tree.get(parent)
      if not isinstance(tree, dict):
        raise _unknown(dotted)
    if field not in tree:
      raise _unknown(dotted)
    value, before = _plain(value), tree[field]
    if None not in (value, before) and _kind(value) is not _kind(before):
      raise InputError(dotted, f"{value!r} is no value like {before!r}", "correct the study",
                       usage=True)
    tree[field] = value
  return config


def mechanism_of(config: Mapping) -> str:
  """What tells the network of a config its class, in words."""
  condition = config["conditioning"]
  if condition["position"] in ("none", "decoders") or condition["mechanism"] == "output":
    return {"none": "none", "decoders": "decoders"}.get(condition["position"], "output")
  return " ".join(str(condition[key]) for key in ("mechanism", "vector") if condition.get(key))


def _unknown(dotted: str) -> InputError:
  return InputError(dotted, "is no setting", "see experiments/configs/base.py", usage=True)


def _plain(value):
  if isinstance(value, Mapping):
    return {str(key): _plain(v) for key, v in value.items()}
  return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _kind(value) -> type:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return float if number else type(value)
