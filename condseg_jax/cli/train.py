"""condseg-train --config=NAME|FILE.py --workdir=DIR [--config.SECTION.SETTING=VALUE …]

Trains one network from many single-class datasets. Re-run the same command to resume. --folds=5
trains five, each without a fifth of the patients, which then predict as an ensemble.

  condseg-train --config=hippocampus --config.data.root=DIR --workdir=RUN

Checkpoints, metrics.jsonl, progress.png, TensorBoard events and run.json go to the workdir.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING

from absl import flags
from etils import epath

from condseg_jax.cli import config_file
from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system import buckets
from condseg_jax.system.large_pages import restart_with_large_pages

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.config import Config
  from condseg_jax.config import Data
  from condseg_jax.data.store import Store
  from condseg_jax.model_io.fold_run import FoldRun


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv, has_config=True, in_buckets=("workdir",))


def _define(values: flags.FlagValues) -> None:
  config_file.define(values)
  flags.DEFINE_string("workdir", "", "Folder of the run, local or in a bucket.",
                      flag_values=values)
  flags.DEFINE_enum("resume", "auto", ("auto", "must", "never", "last_whole"), "auto: resume from "
                    "the last checkpoint if there is one; must: fail without one; never: fail if "
                    "there is one; last_whole: resume from the last one that is not damaged.",
                    flag_values=values)
  shell.define_verify(values)
  flags.DEFINE_integer("folds", 0, "Members of a cross-validation, trained one after the other in "
                       "WORKDIR/fold_0 and on; each takes all steps or minutes. 0 trains a single "
                       "network.", lower_bound=0, flag_values=values)
  flags.DEFINE_bool("probabilities", False, "With --folds: also keep the probabilities that every "
                    "member finds in the cases it did not see.", flag_values=values)
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
  buckets.reach(config.data.root, config.data.cache, config.init.source)
  from condseg_jax.report.progress import Progress
  from condseg_jax.system.cache import enable_compilation_cache
  from condseg_jax.train import parallel
  from condseg_jax.train.loop import train
  from condseg_jax.train.resume import check_workdir
  from condseg_jax.train.setup import check_config

  enable_compilation_cache()
  if values.distributed:
    from condseg_jax.cli.argument_flags import as_flags
    with as_flags(distributed="--distributed", coordinator="--coordinator",
                  processes="--processes", process_id="--process_id"):
      parallel.join(*cluster_flags)
  # Errors are reported before raw data is prepared, which may take hours.
  check_config(config)
  start = None
  if config.init.source:
    from condseg_jax.train.start import read_start
    start = functools.cache(functools.partial(read_start, config.init))
  if not values.folds:
    _check_no_folds(values)
    last = check_workdir(values.workdir, values.resume)
    if start is not None and last is None:
      start()
  with parallel.first_process_first():
    stores = open_data(config.data, progress=parallel.is_first())
  if values.folds:
    return _train_folds(values, config, stores, start)
  train(config, stores, values.workdir, resume=values.resume, verify=values.verify == "on",
        watcher=Progress(values.workdir), start=start)
  return 0


def _check_no_folds(values: flags.FlagValues) -> None:
  """Refuses to train a single network where a cross-validation is, or one of its members."""
  if values.probabilities:
    raise InputError("--probabilities", "has no effect alone", "add --folds", usage=True)
  workdir = epath.Path(values.workdir)
  for folder in (workdir, workdir.parent):
    within = folder == workdir or re.fullmatch(r"fold_\d+", workdir.name)
    if within and (folder / "folds.json").exists():
      raise InputError(folder, "holds a cross-validation", "add the --folds that it was started "
                       "with, or choose another workdir", usage=True)


def _train_folds(values: flags.FlagValues, config: Config, stores: list, start) -> int:
  """Trains the members of a cross-validation and prints its scores."""
  from condseg_jax.cli.argument_flags import as_flags
  from condseg_jax.report.progress import Progress
  from condseg_jax.train import parallel
  from condseg_jax.train.folds import train_folds

  with as_flags(folds="--folds"):
    run = train_folds(config, stores, values.workdir, values.folds, resume=values.resume,
                      verify=values.verify == "on", probabilities=values.probabilities,
                      watcher=Progress, start=start)
  if run is not None and parallel.is_first():
    from condseg_jax.report import trust
    print("\n".join([*trust.lines(run), _scores(run)]))
    trust.draw(run)
  return 0


def _scores(run: FoldRun) -> str:
  """Formats cross-validated scores, one line per class and one for their mean."""
  def line(name: str, dice: float | None, interval: list) -> str:
    if dice is None:
      return f"{name}: not scored"
    return f"{name}: Dice {dice:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"

  scores = run.scores
  lines = [f"{line(name, entry['dice'], entry['ci95'])}, {entry['cases']} cases of "
           f"{entry['patients']} patients" for name, entry in scores["classes"].items()]
  return "\n".join([
      *lines, f"{line('cross-validated', scores['mean_dice'], scores['ci95'])}, "
      f"{scores['cases']} cases of {scores['patients']} patients in {run.count} folds",
      f"95 % intervals over patients; results: {run.folder / 'folds.json'}"])


def open_data(data: Data, *, progress: bool) -> list[Store]:
  """Returns the prepared stores of `data.root`; raw datasets are prepared first."""
  from condseg_jax.data.store import open_prepared

  stores = open_prepared(data.root, data.spacing)
  if stores:
    return stores
  from condseg_jax.datasets import discover  # imports all importers, not needed above

  return discover.open_stores(data.root, data.spacing, data.cache or None, progress=progress)


if __name__ == "__main__":
  sys.exit(main())
