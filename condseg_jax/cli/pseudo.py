"""condseg-pseudo --workdir=RUN --data=STORE --out=STORE2

Writes a prepared store, or a folder of these, again with pseudo-masks: masks of the classes that
nobody annotated in an image, by networks that did not train on it. RUN is a run with --folds on
the same data; there may be further images now, such as those of --unlabelled. The result is a store
as any other, and annotations stay as they are. Running it again resumes.

  condseg-train --config=mine.py --workdir=RUN --folds=5 --probabilities
  condseg-pseudo --workdir=RUN --data=DATA --out=DATA2
  condseg-train --config=mine.py --workdir=RUN2 --config.data.root=DATA2
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

if TYPE_CHECKING:
  from condseg_jax.data.store import Store
  from condseg_jax.pseudo.write import Teacher


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  flags.DEFINE_string("workdir", "", "Folder of the run, which was trained with --folds.",
                      flag_values=values)
  flags.DEFINE_string("data", "", "Prepared store, or folder of prepared stores.",
                      flag_values=values)
  flags.DEFINE_string("out", "", "Folder for the new store or stores.", flag_values=values)
  flags.DEFINE_float("positive", 0.8, "Probability from which on a voxel is positive.",
                     flag_values=values)
  flags.DEFINE_float("negative", 0.1, "Probability up to which a voxel is negative; between the "
                     "two it stays unlabelled.", flag_values=values)
  flags.DEFINE_float("competence", 0.5, "Least cross-validated Dice of a class.", lower_bound=0.0,
                     upper_bound=1.0, flag_values=values)


def _work(values: flags.FlagValues) -> int:
  shell.require(values, "workdir", "data", "out")
  from condseg_jax.data.store import require_prepared
  from condseg_jax.pseudo.rules import Rules
  from condseg_jax.pseudo.write import make_teacher
  from condseg_jax.pseudo.write import write_store
  from condseg_jax.system.cache import enable_compilation_cache

  enable_compilation_cache()
  data, out = Path(values.data).resolve(), Path(values.out).resolve()
  if out == data or data in out.parents:
    raise InputError("--out", f"{values.out} is in the data", "choose another folder", usage=True)
  with as_flags(folds="--folds", positive="--positive", negative="--negative", data="--data",
                competence="--competence", out="--out"):
    rules = Rules(values.positive, values.negative, values.competence)
    stores = require_prepared(data)
    teacher = make_teacher(values.workdir, stores, rules)
    print("\n".join(_gate(teacher)), flush=True)
    written = [write_store(teacher, store, out / store.root.relative_to(data)) for store in stores]
  print("\n".join(_summary(teacher, written)))
  print(f"written to {values.out}; train with --config.data.root={values.out}")
  return 0


def _gate(teacher: Teacher) -> list[str]:
  """Formats which classes join, and why."""
  lines = [f"{'class':20} {'Dice':>6}  {'true volumes, ml':>20}"]
  for name, found in teacher.found.items():
    dice = "none" if found.dice is None else f"{found.dice:.3f}"
    volumes = "none" if found.range_ml is None else "{:.3g} to {:.3g}".format(*found.range_ml)
    left_out = f"  left out: no competent member (Dice below {teacher.rules.competence:g})"
    lines.append(f"{name:20} {dice:>6}  {volumes:>20}{'' if found.joins else left_out}")
  return lines


def _summary(teacher: Teacher, stores: Sequence[Store]) -> list[str]:
  """Formats how many pseudo-masks there are of each class."""
  cases = [case for store in stores for case in store.cases if case.split == "train"]
  lines = []
  for name, found in teacher.found.items():
    if found.joins:
      wanted = [case for case in cases if name not in case.annotated]
      made = sum(name in case.pseudo for case in wanted)
      lines.append(f"{name}: {made} pseudo-masks, {len(wanted) - made} rejected for their volume")
  return lines


if __name__ == "__main__":
  sys.exit(main())
