"""condseg-study STUDY --data=DIR --out=DIR

Runs a study (a file of experiments/studies, `all` of them, or the path of a file): trains and
scores the missing trials, then writes tables and figures. Re-run the same command to resume; it
does nothing when all trials are done.

  condseg-study hippocampus --data=DATA --out=results
  condseg-study all --data=DATA --out=results --dry_run
  condseg-study all --out=results --tables --paper=RESULTS.md

DATA holds the raw datasets (hippocampus/, camvid/); phantoms are generated. OUT receives STUDY.csv,
STUDY.md, STUDY.tex, figures/ and records/; OUT/work holds prepared data and trained networks.
--cluster deals the trials to the workers of a Dask cluster (extra `cluster`).
`all` with --tables also redraws the analyses of condseg-analyse in OUT/analysis/NAME.
"""

import os
from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

PACKAGED = Path(__file__).parent.parent  # contains configs/ and studies/


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv, positional="STUDY")


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("data", "", "Folder with the raw datasets.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder for records, tables, figures, and work/.",
                      flag_values=values)
  flags.DEFINE_string("experiments", "", "Folder with your own configs/ and studies/; the "
                      "packaged ones when empty.", flag_values=values)
  flags.DEFINE_list("seeds", [], "Seeds; those of the study when empty.", flag_values=values)
  flags.DEFINE_list("only", [], "Variants to run; all when empty.", flag_values=values)
  flags.DEFINE_bool("tables", False, "Write tables and figures from the existing records, without "
                    "running anything.", flag_values=values)
  flags.DEFINE_string("paper", "", "With --tables: a Markdown file whose marked sections are "
                      "filled with the tables.", flag_values=values)
  flags.DEFINE_bool("dry_run", False, "List which trials are done, which remain and how long they "
                    "will take.", flag_values=values)
  flags.DEFINE_bool("drop_old", False, "Remove records made with other code, data or "
                    "settings.", flag_values=values)
  shell.define_cluster(values)
  flags.DEFINE_bool("prune", False, "Remove checkpoints that no study needs any more.",
                    flag_values=values)


def _work(values: flags.FlagValues, name: str) -> int:
  with as_flags(only="--only", data="--data", drop_old="--drop_old", tables="--tables"):
    return _run(values, name)


def _run(values: flags.FlagValues, name: str) -> int:
  shell.require(values, "out")
  shell.check_cluster(values)
  from condseg_jax.study import declare

  try:
    seeds = tuple(int(seed) for seed in values.seeds)
  except ValueError as error:
    raise InputError("--seeds", str(error), "whole numbers, as in 0,1,2", usage=True) from error
  experiments = Path(values.experiments or PACKAGED)
  studies = declare.load(name, experiments)
  for flag in ("seeds", "only", "dry_run", "drop_old", "prune"):
    if values.tables and values[flag].value:
      raise InputError(f"--{flag}", "has no effect with --tables, which uses all "
                       "records", "omit one of them", usage=True)
  if values.paper and not values.tables:
    raise InputError("--paper", "needs --tables", "give both", usage=True)
  if values.tables:
    for study in studies:
      _report(study.name, Path(values.out), must=name != "all")
    if name == "all":
      _redraw_analyses(Path(values.out))
    if values.paper:
      from condseg_jax.study import report
      report.fill(Path(values.paper), Path(values.out))
      print(values.paper)
    return 0
  from condseg_jax.cli.network import leave_devices
  from condseg_jax.study import plan
  from condseg_jax.system.cache import enable_compilation_cache

  if values.cluster:
    leave_devices()
  enable_compilation_cache()
  out, data = (Path(os.path.abspath(p)) for p in (values.out, values.data or "."))
  places = plan.RunPaths(experiments, data, out)
  missing = plan.unprepared(studies, places, seeds, values.only) if values.dry_run else {}
  if missing:
    for dataset, count in missing.items():
      print(f"{dataset}: not prepared yet, {count} trial(s) to run")
  if values.drop_old and not values.dry_run:
    for study in studies:
      plan.drop_old(study, places, print)
  jobs = plan.jobs(studies, places, seeds, values.only, without=missing)
  if values.dry_run:
    return _print_plan(jobs, places)
  from condseg_jax.cluster.connect import connected
  from condseg_jax.study.runner import run
  with connected(values.cluster) as cluster:
    failures = run(jobs, places, lambda study: _report(study, out), cluster)
  if values.prune:
    everything = [*declare.load("all", experiments), *studies]
    others = plan.jobs(everything, places, without=plan.unprepared(everything, places))
    count = plan.prune([*others, *jobs], jobs, places, print)
    print(f"removed the checkpoints of {count} training(s)")
  if failures:
    raise InputError(f"{len(failures)} trial(s)", f"failed, the first: {failures[0]}",
                     "correct the cause; the same command runs the missing trials")
  return 0


def _print_plan(jobs, places) -> int:
  from condseg_jax.study import plan
  pace = plan.Pace(places.out)
  for job in jobs:
    left = "done" if job.done else plan.duration(pace.left([job], places))
    print(f"{job.study.name:24} {job.trial.variant.label:36} seed {job.trial.seed}  "
          f"{'+'.join(map(str, job.steps)):>20} steps  {left}")
  waiting = [job for job in jobs if not job.done]
  print(f"{len(jobs) - len(waiting)} of {len(jobs)} trials are done; the others take about "
        f"{plan.duration(pace.left(waiting, places))}")
  return 0


def _redraw_analyses(out: Path) -> None:
  from condseg_jax.analysis import draw
  from condseg_jax.analysis import files
  for path in sorted((out / "analysis").glob(f"*/{files.JSON}")):
    draw.write(path.parent, files.read_json(path.parent))
    print(path.parent / files.SUMMARY)


def _report(study: str, out: Path, must: bool = False) -> None:
  from condseg_jax.study import figures
  from condseg_jax.study import overlay
  from condseg_jax.study import records
  from condseg_jax.study import report
  if not must and not records.files(out / "records" / study):
    return
  found = report.write(out, study)
  paths = [out / f"{study}.{ending}" for ending in ("csv", "md", "tex")]
  paths += figures.write(out / "figures", study, found)
  paths.append(overlay.write(out, study, found.rows))
  for path in filter(None, paths):
    print(path)


if __name__ == "__main__":
  sys.exit(main())
