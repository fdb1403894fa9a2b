"""python -m tools.fuzz TARGET [--seconds=60] [--seed=0] [--corpus=DIR] [--json=FILE]
python -m tools.fuzz TARGET --replay
python -m tools.fuzz table

Attacks a door of the package with damaged inputs. Small intact files are mutated (bits, lengths,
fields of headers, values of texts, members of archives with their checksums made anew) and given to
the code that reads them, in a process of its own with limits of time and memory. Each input has to
be refused in one line that names it, or to be read as the intact one, or to be another valid input
which no reader can know from it. Everything else is a find: a traceback, a hang, a crash, a file
outside of the output folder, a result that differs in silence.

Finds are made smaller and stored in the corpus, once for each kind; tests/tools/test_fuzz.py
attempts all of them again. The exit code is 1 if there was a find. --replay judges the corpus as
it is now. --json adds the figures of the run to a file; `table` prints those of
benchmarks/fuzz.json and writes them into docs/fuzzing.md.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys

from tools.fuzz import session
from tools.fuzz.targets import TARGETS

RUNS = session.ROOT / "benchmarks" / "fuzz.json"
PAGE = session.ROOT / "docs" / "fuzzing.md"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the fuzzer and returns the exit code."""
  parser = argparse.ArgumentParser(prog="tools.fuzz", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("target", choices=(*TARGETS, "table"))
  parser.add_argument("--seconds", type=float, default=60, help="duration (default: 60)")
  parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
  parser.add_argument("--corpus", default="", help="folder for finds, if not tests/corpus/TARGET")
  parser.add_argument("--json", default="", help="file to which the figures are added")
  parser.add_argument("--replay", action="store_true", help="judge the corpus again")
  arguments = parser.parse_args(argv)
  if arguments.target == "table":
    table = session.table(read_runs(Path(arguments.json or RUNS)))
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->")
    after = rest.partition("<!-- end of table -->")[2]
    PAGE.write_text(f"{before}{begin}\n\n{table}\n<!-- end of table -->{after}", encoding="utf-8")
    print(table)
    return 0
  folder = Path(arguments.corpus or session.CORPUS / arguments.target)
  with session.Session(arguments.target) as made:
    if arguments.replay:
      return _replay(made, folder)
    figures, finds = made.run(arguments.seconds, arguments.seed)
  print(f"{arguments.target}: {figures['inputs']} inputs, {figures['per_second']} per second: "
        f"{figures['refused']} refused, {figures['same']} same, {figures['indistinguishable']} "
        f"indistinguishable, {figures['finds']} finds of {len(finds)} kinds")
  for find in finds:
    new = session.store(find, folder)
    count = figures["repeated"][find.verdict.signature]
    print(f"  {'new  ' if new else 'known'} {count:6d}  {find.variant}: {find.verdict.kind}: "
          f"{find.verdict.detail}")
    print(f"                by {json.dumps(find.operations)[:300]}")
  if arguments.json:
    path = Path(arguments.json)
    others = [run for run in read_runs(path) if run["target"] != arguments.target]
    figures.pop("repeated")
    path.write_text(json.dumps({"runs": [*others, figures]}, indent=1) + "\n", encoding="utf-8")
  return 1 if finds else 0


def read_runs(path: Path) -> list[dict]:
  """Returns the figures of runs that --json has written."""
  return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def _replay(made: session.Session, folder: Path) -> int:
  finds = 0
  for entry in session.entries(folder):
    verdict = session.replay(made, entry, folder)
    finds += verdict.find
    print(f"{'find' if verdict.find else 'good'}  {entry['input'] or entry['seed']}  "
          f"{verdict.kind}: {verdict.detail}")
  return 1 if finds else 0


if __name__ == "__main__":
  sys.exit(main())
