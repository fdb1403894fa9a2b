"""condseg-evaluate --workdir=RUN --data=DIR --out=DIR

Scores a trained network on labelled cases of a raw dataset (on the grid of its files) or of a
prepared store. Each case is scored on the classes it annotates.

  condseg-evaluate --workdir=runs/hippocampus --data=Task04_Hippocampus --out=scores

Writes summary.json, cases.csv and overlays of the median and the worst case. --report adds
report.html, a page with scores, slices, errors and a viewer that can be opened offline. --cluster
deals the cases to the workers of a Dask cluster (extra `cluster`).
"""

import functools
import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

if TYPE_CHECKING:
  from condseg_jax.cli.staging import Output


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv,
                   in_buckets=("workdir", "locator", "data", "out"))


def _define(values: flags.FlagValues) -> None:
  shell.define_model(values)
  shell.define_verify(values)
  shell.define_locator(values)
  flags.DEFINE_string("data", "", "Raw dataset or prepared store with labels.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the results.", flag_values=values)
  flags.DEFINE_string("split", "", "train, val or test; by default val if present, else test, else "
                      "all cases.", flag_values=values)
  flags.DEFINE_float("tolerance_mm", 2.0, "Tolerance of the surface Dice (pixels in 2-D).",
                     lower_bound=0.0, flag_values=values)
  flags.DEFINE_enum("fusion", "argmax", ("argmax", "softmax", "independent"),
                    "How the classes of a voxel are resolved.", flag_values=values)
  shell.define_cluster(values)
  shell.define_report(values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "workdir", "data", "out")
  shell.check_cluster(values, "out")
  from condseg_jax.cli import staging
  with staging.output(values.out) as place:
    return _evaluate(values, place)


def _evaluate(values: flags.FlagValues, place: "Output") -> int:
  import tqdm

  from condseg_jax.cli import evaluate_case
  from condseg_jax.cli.network import leave_devices
  from condseg_jax.cli.network import Network
  from condseg_jax.cluster.connect import connected
  from condseg_jax.cluster.tasks import each
  from condseg_jax.cluster.tasks import in_order
  from condseg_jax.evaluate.raw_cases import labelled_cases
  from condseg_jax.evaluate.scores import summarise
  from condseg_jax.report import figures
  from condseg_jax.report import tables
  from condseg_jax.report.page import collect
  from condseg_jax.report.page.case import Case

  if values.cluster:
    leave_devices()
  network = Network.of(values)
  predictor = network.load()
  cases, split = labelled_cases(values.data, values.split)
  if not any(name in predictor.table.names for case in cases for name in case.annotated):
    raise InputError(values.data, "annotates no class of this network",
                     f"classes of the network: {', '.join(predictor.table.names)}")
  out = place.path
  out.mkdir(parents=True, exist_ok=True)
  job = evaluate_case.Job(network, predictor.step, values.data, split, values.tolerance_mm,
                          values.fusion, values.report)
  ids = [case.id for case in cases]
  with connected(values.cluster) as cluster:
    run = functools.partial(each, cluster, device=True, shared=[out])
    outcomes = run(evaluate_case.score, [(job, *pair) for pair in zip(
        ids, collect.case_names(ids, values.report_names), strict=True)], ids)
    rows, failed = [], []
    page_cases: list[Case] = []
    for outcome in in_order((outcome.number, outcome) for outcome in tqdm.tqdm(
        outcomes, desc=f"scoring {split}", total=len(cases))):
      error = outcome.error
      if error is None:
        rows += outcome.value.rows
        if outcome.value.page is not None:
          collect.add(page_cases, outcome.value.page)
      elif not isinstance(error, InputError) or len(cases) == 1 or error.usage:
        raise error
      else:
        failed.append(f"{ids[outcome.number]}: {error}")  # a bad case does not stop the others
    if not rows:
      raise InputError(values.data, f"no case could be scored; first error: {failed[0]}",
                       "check the dataset with condseg-verify")
    scored = {row.class_name for row in rows}
    names = [name for name in predictor.table.names if name in scored]
    summary = summarise(rows, names)
    summary |= {"split": split, "step": predictor.step, "tolerance_mm": values.tolerance_mm}
    tables.write_summary(out / "summary.json", summary)
    tables.write_cases(out / "cases.csv", rows)
    chosen = figures.pick_median_and_worst(rows) if summary["n_classes"] else ()
    pictures = [(job, case_id, out / f"{kind}.png", f"{kind} case: {case_id}")
                for kind, case_id in zip(("median", "worst"), chosen, strict=False)]
    for outcome in run(evaluate_case.draw, pictures, chosen):
      if outcome.error is not None:
        raise outcome.error
  if values.report:
    print(place.named(collect.write_report(out / "report.html", page_cases, predictor, summary,
                                           split=split)))
  print(tables.format_table(summary))
  print(f"mean Dice {summary['mean_dice']:.4f} over {len(names)} classes, {summary['n_cases']} "
        f"cases of split {split!r}\nresults: {place.address}")
  for line in failed:
    print(f"failed: {line}", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
