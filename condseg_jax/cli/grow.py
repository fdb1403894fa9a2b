"""condseg-grow --workdir=RUN --data=NEW --out=RUN2

Teaches a trained network the classes that NEW annotates: classes that it does not know join it,
known ones are adapted to the new images. RUN stays as it is; RUN2 is a run as any other:

  condseg-grow --workdir=runs/abdomen --data=DATA/pancreas --out=runs/abdomen_pancreas
  condseg-predict --workdir=runs/abdomen_pancreas --input=scan.nii.gz --output=masks

--level=auto tries the levels from the highest and takes the first at which no known class loses
more than half a point of Dice on cases that it holds out:

  2  everything, beside old data, or taught by the network before where there are none; if known
     classes lose too much, a network between the one before and the one after
  1  what belongs to the new class alone: rows in every conditioned layer, or its decoder or head
  0  the vector of the new class alone

Running it again after an interruption goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

if TYPE_CHECKING:
  from condseg_jax.data.store import Store
  from condseg_jax.grow.growth import Growth
  from condseg_jax.grow.judge import Row
  from condseg_jax.grow.ladder import Outcome
  from condseg_jax.model_io.bundle import Bundle


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", "", "Folder of the run that grows, or a bundle.",
                      flag_values=values)
  flags.DEFINE_string("data", "", "New data: prepared stores or raw datasets.", flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the grown run.", flag_values=values)
  flags.DEFINE_enum("level", "auto", ("auto", "0", "1", "2"), "auto: see above; 0, 1 or 2: "
                    "this level, whatever it costs known classes.", flag_values=values)
  flags.DEFINE_string("old", "", "Data that the run was trained on; by default those that its "
                      "config names, if they are still there and have not changed. none: use none.",
                      flag_values=values)
  flags.DEFINE_list("overlapping", [], "Pairs of classes that a voxel may both belong to, besides "
                    "those whose masks overlap, e.g. tumour:liver.", flag_values=values)
  flags.DEFINE_integer("steps", 0, "Steps of every level; by default 0.1, 0.25 and 0.4 of those of "
                       "the run.", lower_bound=0, flag_values=values)
  shell.define_report(values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "workdir", "data", "out")
  _check_apart(values)
  from condseg_jax.grow import ladder
  from condseg_jax.grow.growth import make_growth
  from condseg_jax.grow.growth import read_source
  from condseg_jax.system.cache import enable_compilation_cache

  enable_compilation_cache()
  with as_flags(out="--out", data="--data", overlapping="--overlapping", members="--members"):
    network = read_source(values.workdir)
    stores = _stores(values.data, network)
    growth = make_growth(values.workdir, network, stores, _old(values.old, network),
                         named=values.old not in ("", "none"),
                         overlapping=[pair.split(":") for pair in values.overlapping])
    _check_level(values.level, growth)
    print("\n".join(_introduction(growth)), flush=True)
    outcome = ladder.grow(growth, values.out, steps=values.steps,
                          level=None if values.level == "auto" else int(values.level))
  if outcome is None:
    raise shell.Terminated
  return _finish(values, growth, outcome)


def _check_apart(values: flags.FlagValues) -> None:
  """Raises InputError if the output would lie in the run or in the data."""
  out = Path(values.out).resolve()
  for name in ("workdir", "data", "old"):
    given = str(values[name].value)
    if given and Path(given).resolve() in (out, *out.parents):
      raise InputError("--out", f"{values.out} is in --{name}", "choose another folder", usage=True)


def _stores(root: str, network: Bundle, cache: str = "") -> list[Store]:
  from condseg_jax.cli.train import open_data
  from condseg_jax.config import Data

  return open_data(Data(root=root, spacing=network.record.plan.spacing, cache=cache), progress=True)


def _old(old: str, network: Bundle) -> list[Store]:
  from condseg_jax.grow.growth import at_hand

  if old == "none":
    return []
  if old:
    return _stores(old, network)
  root = at_hand(network)
  try:
    return _stores(root, network, network.record.config.data.cache) if root else []
  except InputError as error:  # nobody asked for them
    print(f"the data that the run was trained on are not used: {error}")
    return []


def _check_level(level: str, growth: Growth) -> None:
  """Raises InputError if the network or the data do not have a level."""
  if level in ("0", "1") and growth.known:
    raise InputError("--data", f"annotates {growth.known[0]!r}, which {growth.source} knows "
                     f"already, and level {level} adds classes", "give --level=auto to adapt the "
                     "network to these images, or rename the class if it is another one",
                     usage=True)
  if level != "auto" and int(level) not in growth.levels:
    raise InputError("--level", f"0 learns a class vector, but {growth.source} has none that is "
                     f"learned (vector {growth.record.config.conditioning.vector!r})",
                     "give --level=1 or auto", usage=True)


def _introduction(growth: Growth) -> list[str]:
  count = lambda datasets: sum(len(d.cases) for d in datasets)
  own = [d for d in growth.training if growth.is_new(d)]
  lines = [f"{what}: {', '.join(names)}" for what, names in (
      ("new classes", growth.new), ("adapted classes", growth.known)) if names]
  lines.append(f"{count(own)} new cases to train on, {count(growth.held_out)} to judge by")
  old = (f"{count(growth.training) - count(own)} cases of the old data at hand, and "
         f"{count(growth.old_held_out)} to judge by" if growth.old_stores else
         "no old data at hand: classes that the new cases do not annotate are judged by agreement "
         "with the network before")
  return [*lines, old]


def _finish(values: flags.FlagValues, growth: Growth, outcome: Outcome) -> int:
  """Prints the table of the level that was taken, or why there is none."""
  for title, reason in outcome.reasons.items():
    print(f"{title}: {reason}")
  if outcome.taken is None:
    raise InputError(values.workdir, "did not grow: no level was taken", "annotate more cases, "
                     f"give more --steps, or choose a --level; what was tried is in {values.out}")
  print("\n".join(table(outcome.rows)))
  if values.report:
    print(_page(values, growth, outcome.rows))
  way = "" if outcome.share == 1 else f", {100 * outcome.share:g} % of the way to it,"
  print(f"level {outcome.taken}{way} is taken; the grown network: {values.out}")
  return 0


def table(rows: Sequence[Row]) -> list[str]:
  """Formats what classes had before and have after."""
  lines = [f"{'class':20} {'judged by':10} {'cases':>5} {'before':>7} {'after':>7}  difference, "
           "points [95 %]"]
  for row in rows:
    before, difference = "", ""
    if row.before is not None:
      before = f"{row.before:.4f}"
      difference = f"{-100 * row.loss:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    lines.append(f"{row.name:20} {row.by:10} {row.cases:5} {before:>7} {row.after:7.4f}  "
                 f"{difference}".rstrip())
  return lines


def _page(values: flags.FlagValues, growth: Growth, rows: Sequence[Row]) -> str:
  """Writes a page with the table and the new cases held out; returns a line about it."""
  from condseg_jax.evaluate.cases import stored_cases
  from condseg_jax.evaluate.run import evaluate
  from condseg_jax.loading import load
  from condseg_jax.report.page import collect
  from condseg_jax.report.page.write import write_page

  predictor, cases = load(values.out), stored_cases(growth.held_out)
  drawn, on_case = collect.watch(predictor, [case.id for case in cases], values.report_names)
  evaluate(predictor, cases, fast=True, on_case=on_case)
  of = {"new": "new cases", "old": "old cases", "agreement": "agreement with the network before"}
  facts = {f"{row.name}, {of[row.by]}": f"{'new' if row.before is None else f'{row.before:.3f}'} → "
           f"{row.after:.3f} ({row.cases})" for row in rows}
  path = Path(values.out) / "report.html"
  note = write_page(path, drawn, predictor.table, title="Before and after growth", facts=facts)
  return f"report: {path}" + (f"  ({note})" if note else "")


if __name__ == "__main__":
  sys.exit(main())
