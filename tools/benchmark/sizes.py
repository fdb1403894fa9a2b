"""python -m tools.benchmark.sizes

Prints the table of docs/training.md: parameters, work and memory of the networks by size.
"""

import importlib
import math

import jax

from condseg_jax.config import Config
from condseg_jax.models.memory import training_bytes
from tools.benchmark import nets

CONFIGS = ("base", "sizes:S", "sizes:M", "sizes:L")
HEADER = """\
| config | parameters | subvolume | encode | decode of a class | memory of a step |
|---|---|---|---|---|---|"""


def row(name: str) -> str:
  """Returns the row of a config; nothing is computed but shapes.

  Args:
    name: of the config, with its argument if any.
  """
  module, *argument = name.split(":")
  module = importlib.import_module(f"condseg_jax.configs.{module}")
  config = Config.from_dict(module.get_config(*argument).to_dict())
  model, shape = nets.network(config), config.data.subvolume
  params = nets.parameter_shapes(model)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  encode, decode = (flops / 1e9 for flops in nets.work(params, model, shape))
  memory = training_bytes(model, shape, 1, config.data.batch_size, platform="gpu") / 1e9
  return (f"| `{name}` | {count / 1e6:.1f} M | {'×'.join(map(str, shape))} | {encode:,.1f} GFLOP | "
          f"{decode:,.1f} GFLOP | {memory:.1f} GB |")


def markdown() -> str:
  """Returns the table."""
  return "\n".join([HEADER, *map(row, CONFIGS)])


if __name__ == "__main__":
  print(markdown())
