"""python -m tools.planted plant --data=STORE --out=STORE2 [--seed=0]
python -m tools.planted score --data=STORE2 --audit=audit.json

How many wrong masks does condseg-audit find? `plant` damages a tenth of the training masks of a
store in which every case annotates several classes, in six ways in turn; `score` compares the
ranking with what was planted.

  python -m tools.planted plant --data=STORE --out=STORE2
  condseg-train --config=mine.py --config.data.root=STORE2 --workdir=RUN --folds=3
  condseg-audit --workdir=RUN --data=STORE2 --json=audit.json
  python -m tools.planted score --data=STORE2 --audit=audit.json
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import json
from pathlib import Path
import sys

import numpy as np

from condseg_jax.data.rewrite import Change
from condseg_jax.data.rewrite import rewrite
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.data.writer import Rows
from condseg_jax.datasets.corrupt import Corruption

RECORD = "planted.json"
SHARE = 0.1  # of the masks
AMOUNT = 0.4  # of the voxels of a mask, for parts and regions
DISTANCE = 0.4  # of the extent of a structure, for shifts
KINDS = ("missing part", "false region", "swapped", "shifted", "mirrored", "exchanged")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool and returns the exit code."""
  parser = argparse.ArgumentParser(prog="tools.planted", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("step", choices=("plant", "score"))
  parser.add_argument("--data", required=True)
  parser.add_argument("--out")
  parser.add_argument("--audit")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args(argv)
  store = Store.open(arguments.data)
  if arguments.step == "plant":
    print(json.dumps(plant(store, arguments.out, arguments.seed).provenance["planted"], indent=1))
  else:
    rows = json.loads(Path(arguments.audit).read_text())["rows"]
    print("\n".join(score(store.provenance["planted"], rows)))
  return 0


def plant(store: Store, out: str, seed: int) -> Store:
  """Writes a store with damage; its provenance lists case, class and kind."""
  rng = np.random.default_rng(seed)
  cases = [case for case in store.cases if case.split == "train" and len(case.annotated) > 1]
  wanted = round(SHARE * sum(len(case.annotated) for case in cases))
  planted, changes = [], {}
  for number, index in enumerate(rng.permutation(len(cases))):
    case, kind = cases[index], KINDS[number % len(KINDS)]
    names = [str(name) for name in rng.permutation(case.annotated)[:2]]
    damaged = names if kind == "exchanged" else names[:1]
    if len(planted) + len(damaged) > wanted:
      break
    planted += [{"case": case.key, "class": name, "kind": kind} for name in damaged]
    make = functools.partial(_damaged, store, case, names, kind, int(rng.integers(1 << 31)))
    changes[case.key] = Change(make, f"planted {kind} {seed}", case.dataset)
  return rewrite(store, out, changes, RECORD, {"planted": planted})


def score(planted: Sequence[Mapping], rows: Sequence[Mapping]) -> list[str]:
  """Returns lines about a ranking: precision at k, and for every kind its ranks and guesses."""
  key = lambda row: (row["case"], row["class"])
  rank = {key(row): (number, row) for number, row in enumerate(rows, 1)}
  k = len(planted)
  hits = sum(rank[key(one)][0] <= k for one in planted)
  lines = [f"{hits} of the first {k} of {len(rows)} are planted: precision {hits / k:.2f}"]
  for kind in KINDS:
    found = [rank[key(one)] for one in planted if one["kind"] == kind]
    lines.append(f"{kind:13} " + "; ".join(
        f"{number}. {row['kind']} ({row['dice']:.2f})" for number, row in sorted(
            found, key=lambda pair: pair[0])))
  false = [row for row in rows[:k] if key(row) not in {key(one) for one in planted}]
  return [*lines, "not planted   " + "; ".join(
      f"{rank[key(row)][0]}. {row['kind']} ({row['dice']:.2f}) {row['class']}" for row in false)]


def _damaged(store: Store, case: Case, names: Sequence[str], kind: str,
             seed: int) -> Mapping[str, Rows]:
  """Returns the damaged masks of a case."""
  rng = np.random.default_rng(seed)
  one, other = store.read_masks(case, names)
  spacing = tuple(store.spacing)
  if kind == "exchanged":
    return _rows({names[0]: other, names[1]: one})
  if kind == "swapped":
    return _rows({names[0]: other})
  axis = int(rng.integers(one.ndim))
  if kind == "mirrored":
    return _rows({names[0]: np.flip(one, axis)})
  if kind == "shifted":
    places = np.nonzero(one)[axis]
    steps = round(DISTANCE * (np.ptp(places) + 1)) if len(places) else 0
    return _rows({names[0]: np.roll(one, max(1, steps) * int(rng.choice([-1, 1])), axis)})
  damage = {"missing part": "parts", "false region": "false_positives"}[kind]
  return _rows({names[0]: Corruption(damage, AMOUNT, seed).apply(one, spacing, case.key)})


def _rows(masks: Mapping[str, np.ndarray]) -> dict[str, Rows]:
  return {name: functools.partial(_part, mask) for name, mask in masks.items()}


def _part(mask: np.ndarray, rows: slice) -> np.ndarray:
  return mask[rows]


if __name__ == "__main__":
  sys.exit(main())
