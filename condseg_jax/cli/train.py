"""condseg-train --config=experiments/configs/NAME.py --workdir=DIR [--config.FIELD=VALUE …]

Trains one network from many single-class datasets. The same command goes on where it stopped.

  condseg-train --config=experiments/configs/hippocampus.py --config.data.root=DIR --workdir=RUN

Checkpoints, metrics.jsonl, TensorBoard events and run.json go to the workdir.
"""

import os
import sys

from absl import flags
from ml_collections import config_flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  # Configs import each other as `configs.NAME`, wherever the program was started.
  for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
    if argument.startswith("--config=") or argument == "--config":
      given = argument.partition("=")[2] or following
      path = given.partition(".py:")[0].removesuffix(".py") + ".py"
      if not os.path.exists(path):
        raise InputError(path, "does not exist", "name a file with get_config()", usage=True)
      sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(path))))
  config_flags.DEFINE_config_file("config", None, "File with get_config(); fields are set with "
                                  "--config.FIELD=VALUE.", flag_values=values)
  flags.DEFINE_string("workdir", "", "Folder of the run, local or in a bucket.",
                      flag_values=values)
  flags.DEFINE_enum("resume", "auto", ("auto", "must", "never"), "auto: go on from the last "
                    "checkpoint if there is one; must: fail without one; never: fail if there is "
                    "one.", flag_values=values)
  flags.DEFINE_bool("distributed", False, "Several processes train one network; start the same "
                    "command in each. Clusters that jax knows (Cloud TPU, SLURM, …) need nothing "
                    "else.", flag_values=values)
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where jax cannot know it.",
                      flag_values=values)
  flags.DEFINE_integer("processes", None, "Number of processes, likewise.", flag_values=values)
  flags.DEFINE_integer("process_id", None, "Number of this process, likewise.", flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.need(values, "config", "workdir")
  from condseg_jax.system.cache import enable_compilation_cache
  from condseg_jax.train.cluster import join
  from condseg_jax.train.loop import train

  enable_compilation_cache()
  if values.distributed:
    join(values.coordinator, values.processes, values.process_id)
  elif {values.coordinator, values.processes, values.process_id} != {None}:
    raise InputError("--coordinator, --processes, --process_id", "have no effect alone",
                     "add --distributed", usage=True)
  train(plain_config(values.config), values.workdir, resume=values.resume)
  return 0


def plain_config(config) -> dict:
  """A ConfigDict as JSON would give it back: dicts, lists and scalars."""
  return _plain(config.copy_and_resolve_references().to_dict())


def _plain(tree):
  if isinstance(tree, dict):
    return {str(key): _plain(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_plain(value) for value in tree]
  return tree


if __name__ == "__main__":
  sys.exit(main())
