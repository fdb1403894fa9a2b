"""condseg-train --config=NAME|FILE.py --workdir=DIR [--config.SECTION.SETTING=VALUE …]

Trains one network from many single-class datasets. Re-run the same command to resume.

  condseg-train --config=hippocampus --config.data.root=DIR --workdir=RUN

Checkpoints, metrics.jsonl, progress.png, TensorBoard events and run.json go to the workdir.
"""

import sys

from absl import flags

from condseg_jax.cli import config_file
from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv, has_config=True)


def _define(values: flags.FlagValues) -> None:
  config_file.define(values)
  flags.DEFINE_string("workdir", "", "Folder of the run, local or in a bucket.",
                      flag_values=values)
  flags.DEFINE_enum("resume", "auto", ("auto", "must", "never", "last_whole"), "auto: resume from "
                    "the last checkpoint if there is one; must: fail without one; never: fail if "
                    "there is one; last_whole: resume from the last one that is not damaged.",
                    flag_values=values)
  shell.define_verify(values)
  flags.DEFINE_bool("distributed", False, "Several processes train one network: start the same "
                    "command in each. Clusters that JAX detects (Cloud TPU, SLURM, …) need no "
                    "other flag.", flag_values=values)
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if JAX cannot detect it.",
                      flag_values=values)
  flags.DEFINE_integer("processes", None, "Number of processes, if JAX cannot detect it.",
                       flag_values=values)
  flags.DEFINE_integer("process_id", None, "Index of this process from 0, if JAX cannot "
                       "detect it.", flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "config", "workdir")
  config = config_file.load(values.config)
  cluster_flags = (values.coordinator, values.processes, values.process_id)
  if not values.distributed and cluster_flags != (None, None, None):
    raise InputError("--coordinator, --processes, --process_id", "have no effect alone",
                     "add --distributed", usage=True)
  from condseg_jax.report.progress import Progress
  from condseg_jax.system.cache import enable_compilation_cache
  from condseg_jax.train import parallel
  from condseg_jax.train.loop import train
  from condseg_jax.train.setup import check_config
  from condseg_jax.train.setup import check_workdir

  enable_compilation_cache()
  if values.distributed:
    from condseg_jax.cli.argument_flags import as_flags
    with as_flags(distributed="--distributed", coordinator="--coordinator",
                  processes="--processes", process_id="--process_id"):
      parallel.join(*cluster_flags)
  # Errors are reported before raw data is prepared, which may take hours.
  check_config(config)
  last = check_workdir(values.workdir, values.resume)
  start = None
  # With last_whole, all checkpoints may turn out to be damaged.
  if config.init.source and (last is None or values.resume == "last_whole"):
    from condseg_jax.train.start import read_start
    start = read_start(config.init)
  with parallel.first_process_first():
    stores = _stores(config.data, progress=parallel.is_first())
  train(config, stores, values.workdir, resume=values.resume, verify=values.verify == "on",
        watcher=Progress(values.workdir), start=start)
  return 0


def _stores(data, *, progress: bool) -> list:
  """The prepared stores of `data.root`; raw datasets are prepared first."""
  from condseg_jax.data.store import open_prepared

  stores = open_prepared(data.root, data.spacing)
  if stores:
    return stores
  from condseg_jax.datasets import discover  # imports all importers, not needed above

  return discover.open_stores(data.root, data.spacing, data.cache or None, progress=progress)


if __name__ == "__main__":
  sys.exit(main())
