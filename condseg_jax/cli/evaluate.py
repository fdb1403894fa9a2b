"""condseg-evaluate --workdir=RUN --data=DIR --out=DIR

Scores a trained network on labelled cases: a raw dataset (on the files' own grid) or a prepared
store. Each case is scored on the classes that it annotates.

  condseg-evaluate --workdir=runs/hippocampus --data=Task04_Hippocampus --out=scores

Writes summary.json, cases.csv and pictures of the median and the worst case; with --report also
report.html, a page with scores, slices, errors and a viewer, which opens without a network.
"""

from pathlib import Path
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  shell.define_model(values)
  shell.define_locator(values)
  flags.DEFINE_string("data", "", "Raw dataset or prepared store with labels.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the results.", flag_values=values)
  flags.DEFINE_string("split", "", "train, val or test; by default val where there is one, else "
                      "test, else all cases.", flag_values=values)
  flags.DEFINE_float("tolerance_mm", 2.0, "Tolerance of the surface Dice (pixels in 2-D).",
                     lower_bound=0.0, flag_values=values)
  flags.DEFINE_enum("fusion", "argmax", ("argmax", "softmax", "independent"),
                    "How classes share voxels.", flag_values=values)
  shell.define_report(values)


def _work(values: flags.FlagValues) -> int:
  shell.need(values, "workdir", "data", "out")
  import tqdm

  from condseg_jax.evaluate.raw_cases import labelled_cases
  from condseg_jax.evaluate.run import evaluate
  from condseg_jax.evaluate.scores import summarise
  from condseg_jax.predictor import load
  from condseg_jax.report import figures
  from condseg_jax.report import tables
  from condseg_jax.report.page import collect
  from condseg_jax.system.cache import enable_compilation_cache

  enable_compilation_cache()
  predictor = load(values.workdir, values.checkpoint, locator=values.locator)
  cases, split = labelled_cases(values.data, values.split)
  if not any(name in predictor.table.names for case in cases for name in case.annotated):
    raise InputError(values.data, "annotates no class of this network",
                     f"the network knows {', '.join(predictor.table.names)}")
  out = Path(values.out)
  out.mkdir(parents=True, exist_ok=True)
  shown, seen = collect.watch(predictor, [case.id for case in cases], values.report_names)
  rows, failed = [], []
  for case in tqdm.tqdm(cases, desc=f"scoring {split}"):
    try:
      rows += evaluate(predictor, [case], tolerance_mm=values.tolerance_mm, fusion=values.fusion,
                       seen=seen if values.report else None)
    except InputError as error:
      if len(cases) == 1 or error.usage:
        raise
      failed.append(f"{case.id}: {error}")  # one bad case does not cost the scores of the others
  if not rows:
    raise InputError(values.data, f"no case could be scored, the first: {failed[0]}",
                     "see condseg-verify")
  scored = {row.class_name for row in rows}
  names = [name for name in predictor.table.names if name in scored]
  summary = summarise(rows, names)
  summary |= {"split": split, "step": predictor.step, "tolerance_mm": values.tolerance_mm}
  tables.write_summary(out / "summary.json", summary)
  tables.write_cases(out / "cases.csv", rows)
  chosen = figures.pick_median_and_worst(rows) if summary["n_classes"] else ()
  for kind, case_id in zip(("median", "worst"), chosen, strict=False):
    volume, truth = next(case for case in cases if case.id == case_id).read()
    label = predictor.predict(volume, fusion=values.fusion).label
    figures.draw_prediction(out / f"{kind}.png", volume, label, predictor.table,
                             f"{kind} case: {case_id}", truth, modality=predictor.plan.modality)
  if values.report:
    print(collect.write_report(out / "report.html", shown, predictor, summary,
                               split=split))
  print(tables.format_table(summary))
  print(f"mean Dice {summary['mean_dice']:.4f} over {len(names)} classes, {summary['n_cases']} "
        f"cases of the split {split!r}\nresults: {out}")
  for line in failed:
    print(f"failed: {line}", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
