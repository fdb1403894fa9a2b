"""condseg-audit --workdir=RUN --data=DATA [--json=FILE] [--report=FILE.html] [--out=DATA2]

Ranks the training masks by how little the networks that did not see them agree, with a guess at
what is wrong: missing parts, false regions, masks that are shifted, mirrored or of another class.
RUN is a run with --folds on the same prepared data.

  condseg-train --config=mine.py --workdir=RUN --folds=5
  condseg-audit --workdir=RUN --data=DATA --report=audit.html

Look at the page, then leave out the masks that are wrong, by their numbers on it:

  condseg-audit --workdir=RUN --data=DATA --out=DATA2 --drop=1-12,15
  condseg-train --config=mine.py --workdir=RUN2 --config.data.root=DATA2

With --doubtful only those of their voxels are left out where mask and network disagree. DATA2
holds stores as any other; what was changed is in their manifests. Running it again resumes.
--cluster deals the cases to the workers of a Dask cluster (extra `cluster`).
"""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
import re
import sys
from typing import TYPE_CHECKING
import uuid

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.errors import printable

MOST = 1_000_000  # masks in a range

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.classes import ClassTable
  from condseg_jax.data.store import Case
  from condseg_jax.data.store import Store
  from condseg_jax.evaluate.audit import Row
  from condseg_jax.model_io.fold_run import FoldRun


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", "", "Folder of the run, which was trained with --folds.",
                      flag_values=values)
  flags.DEFINE_string("data", "", "Prepared store, or folder of prepared stores.",
                      flag_values=values)
  flags.DEFINE_integer("count", 20, "Masks to print and to show on the page.", lower_bound=1,
                       flag_values=values)
  flags.DEFINE_string("json", "", "File for the whole ranking, most suspicious first.",
                      flag_values=values)
  flags.DEFINE_string("report", "", "File for a page with a picture of each, .html.",
                      flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the data without the masks of --drop.",
                      flag_values=values)
  flags.DEFINE_list("drop", [], "Numbers of the masks to leave out, as in the table and on the "
                    "page: 1-12,15.", flag_values=values)
  flags.DEFINE_bool("doubtful", False, "Leave out only the voxels where these masks and what was "
                    "found disagree.", flag_values=values)
  shell.define_cluster(values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "workdir", "data")
  if bool(values.out) != bool(values.drop):
    raise InputError("--drop" if values.drop else "--out", "needs the other of --out and --drop",
                     "give --out=DATA2 --drop=1-12: which masks to leave out", usage=True)
  numbers = _numbers(values.drop)
  shell.check_cluster(values)
  from condseg_jax.cli.network import leave_devices
  from condseg_jax.cluster.connect import connected
  from condseg_jax.cluster.tasks import each
  from condseg_jax.data.store import require_prepared
  from condseg_jax.evaluate import audit
  from condseg_jax.evaluate.audit_case import Audit
  from condseg_jax.evaluate.audit_case import compare_case
  from condseg_jax.model_io.fold_run import FoldRun
  from condseg_jax.model_io.load import read_model
  from condseg_jax.system.atomic import write_text

  with as_flags(folds="--folds", data="--data"):
    run = FoldRun.open(values.workdir)
    stores = require_prepared(values.data)
    cases = _cases(run, stores)
  if values.cluster:
    leave_devices()
  record = read_model(run.folder, members=1).record
  job = Audit(values.workdir, uuid.uuid4().hex)
  tasks = [(job, str(store.root), case.id) for store, case in cases.values()]
  compared = []
  with connected(values.cluster) as cluster:
    outcomes = each(cluster, compare_case, tasks, list(cases))
    for number, outcome in enumerate(outcomes, 1):  # `rank` sorts them
      print(f"\r{number} of {len(cases)} cases", end="", file=sys.stderr, flush=True)
      if outcome.error is not None:
        raise outcome.error
      compared += outcome.value
  print(file=sys.stderr)
  rows = audit.rank(compared)
  print("\n".join(_table(rows[:values.count])))
  if values.json:
    write_text(values.json, json.dumps(audit.to_json(rows), indent=1) + "\n")
  if values.report:
    print(_report(values.report, run, record.table, record.plan.modality, cases,
                  rows[:values.count]))
  if values.out:
    if max(numbers) > len(rows):
      raise InputError("--drop", f"{max(numbers)} is beyond the {len(rows)} masks", "see the table",
                       usage=True)
    dropped = [rows[number - 1] for number in sorted(numbers)]
    print(_write(values, run, stores, dropped))
  return 0


def _numbers(texts: Sequence[str]) -> set[int]:
  """Returns the row numbers that are meant by 1-12,15."""
  numbers: set[int] = set()
  for text in texts:
    found = re.fullmatch(r"\s*([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?\s*", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first or last - first > MOST:
      raise InputError(f"--drop={text}", "is not a number or range of numbers", "e.g. 1-12,15",
                       usage=True)
    numbers.update(range(first, last + 1))
  return numbers


def _write(values: flags.FlagValues, run: FoldRun, stores: Sequence[Store],
           dropped: Sequence[Row]) -> str:
  """Writes the data without some masks; returns a line about it."""
  from condseg_jax.evaluate.audited_store import write_audited
  data, out = Path(values.data).resolve(), Path(values.out).resolve()
  if out == data or data in out.parents:
    raise InputError("--out", f"{values.out} is in the data", "choose another folder", usage=True)
  with as_flags(out="--out"):
    for store in stores:
      write_audited(store, out / store.root.relative_to(data), run, dropped,
                    doubtful=values.doubtful)
  what = "the doubtful voxels of " if values.doubtful else ""
  return (f"{values.out}: without {what}{len(dropped)} masks; train with "
          f"--config.data.root={values.out}")


def _cases(run: FoldRun, stores: Sequence[Store]) -> dict[str, tuple[Store, Case]]:
  """Returns the cases of the run in some stores, by their keys."""
  training = {case.key: (store, case) for store in stores
              for case in store.cases if case.split == "train" and case.annotated}
  known = {key: place for key, place in training.items() if key in run.places}
  if not known:
    raise InputError("data", f"holds no case that {run.folder} was trained on",
                     "give the data of that run", usage=True)
  if len(known) < len(training):
    print(f"{len(training) - len(known)} cases that the run never saw are left out")
  return known


def _table(rows: Sequence[Row]) -> list[str]:
  lines = [f"{'':>4}  {'score':>6}  {'Dice':>5}  {'class':20} {'guess':28} case"]
  return lines + [f"{number:4}  {row.score:6.3f}  {row.dice:5.3f}  {row.class_name:20} "
                  f"{row.kind:28} {printable(row.case)}" for number, row in enumerate(rows, 1)]


def _report(path: str, run: FoldRun, table: ClassTable, modality: str,
            cases: dict[str, tuple[Store, Case]], rows: Sequence[Row]) -> str:
  """Writes a page with the masks of some rows beside what was found; returns a line about it."""
  from condseg_jax.report.page.case import draw_case
  from condseg_jax.report.page.write import write_page

  drawn = []
  for number, row in enumerate(rows, 1):
    store, case = cases[row.case]
    mask, = store.read_masks(case, [row.class_name])
    drawn.append(draw_case(
        f"{number}. {printable(row.case)}: {row.class_name}", store.read_volume(case),
        run.out_of_fold(row.case).label, table, {row.class_name: {"dice": row.dice}},
        modality=modality, truth={row.class_name: mask}, warnings=[f"guess: {row.kind}"]))
  note = write_page(path, drawn, table, title="Masks to look at", facts={
      "what is shown": "the mask (truth) and what the network found that did not see it",
      "order": "the most suspicious first"})
  return f"report: {path}" + (f"  ({note})" if note else "")


if __name__ == "__main__":
  sys.exit(main())
