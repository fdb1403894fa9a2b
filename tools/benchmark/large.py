"""10,000 CTs as a training set: opening the store, setting up a run, the first batch, memory.

The store is real but for its size: two CTs of 192x192x128 are prepared, and the manifest names them
10,000 times, each under an id of its own whose folder is a link. Voxels are read by subvolume, so
that the size of a CT does not matter here.
"""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import prepare
from tools.benchmark import reading

SHAPE = (192, 192, 128)  # x y z
CASES, FEW = 10_000, 100
SUBVOLUME = (32, 64, 64)  # D H W
# Prints the seconds since its start after each stage, and its peak memory in bytes.
CHILD = """
import time
start, seconds = time.perf_counter(), []
import json, resource, sys
from condseg_jax.config import Config
from condseg_jax.data import store
from condseg_jax.train.setup import make_setup
seconds.append(time.perf_counter() - start)
stores = store.open_prepared(sys.argv[1])
seconds.append(time.perf_counter() - start)
tree = Config().to_dict()
tree["data"] |= {"subvolume": SUBVOLUME, "hold_out": 0.1}
setup = make_setup(Config.from_dict(tree), stores, None, sys.argv[1])
seconds.append(time.perf_counter() - start)
next(setup.batches())
seconds.append(time.perf_counter() - start)
print(json.dumps([seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
STAGES = ("import", "open the store", "set up the run", "read the first batch")


def run(folder: Path) -> list[dict]:
  """Returns the rows of the suite."""
  raw, small = folder / "raw", folder / "small"
  reading.write_cts(raw, SHAPE, 2)
  prepare(read_msd(raw), small, (1.0, 1.0, 1.0), progress=False)
  (many, peak), (few, low) = (_measure(small, folder / str(count), count)
                              for count in (CASES, FEW))
  rows = []
  for number, name in enumerate(STAGES):
    ours, peer = (times[number] - (times[number - 1] if number else 0.0) for times in (many, few))
    rows.append(_row(name, ours, peer, "s"))
  return [*rows, _row("from the start of the process to the first batch", many[-1], few[-1], "s"),
          _row("peak memory by then", peak, low, "bytes")]


def _row(name: str, ours: float, peer: float, unit: str) -> dict:
  return {"name": f"{CASES:,} CTs: {name}", "ours": ours, "peer": peer, "ratio": peer / ours,
          "unit": unit, "peer_kind": f"{FEW} CTs"}


def _measure(small: Path, large: Path, count: int) -> tuple[list[float], int]:
  """Measures a process that reads the first batch of a store of `count` cases."""
  multiply(small, large / "store", count)
  done = subprocess.run(
      [sys.executable, "-c", CHILD.replace("SUBVOLUME", repr(SUBVOLUME)), str(large / "store")],
      capture_output=True, encoding="utf-8", check=False,
      env=os.environ | {"JAX_PLATFORMS": "cpu"})
  if done.returncode:
    raise SystemExit(done.stderr)
  seconds, peak = json.loads(done.stdout.splitlines()[-1])
  return seconds, peak


def multiply(small: Path, large: Path, count: int) -> None:
  """Writes a store with `count` cases whose folders are links to those of a small one."""
  shutil.rmtree(large, ignore_errors=True)
  (large / "cases").mkdir(parents=True)
  tree = json.loads((small / "manifest.json").read_text(encoding="utf-8"))
  cases = tree["cases"]
  tree["cases"] = [cases[number % len(cases)] | {"id": f"ct_{number:05d}", "patient": str(number)}
                   for number in range(count)]
  for number, case in enumerate(tree["cases"]):
    (large / "cases" / case["id"]).symlink_to(
        (small / "cases" / cases[number % len(cases)]["id"]).resolve())
  (large / "manifest.json").write_text(json.dumps(tree), encoding="utf-8")
