"""Alternating timing of implementations, and the rows of its results; used by all suites."""

from collections.abc import Callable
from collections.abc import Mapping
import statistics
import sys
import time

import jax

NO_PEER = "peer not measured: needs the bench extra"


def progress(text: str) -> None:
  """Prints a message with the time of day to stderr."""
  print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def seconds(call: Callable) -> tuple[float, object]:
  """Calls a function; returns the seconds until its result is ready, and the result."""
  begin = time.perf_counter()
  result = jax.block_until_ready(call())
  return time.perf_counter() - begin, result


def in_turns(ways: Mapping[str, Callable], *, budget: float, rounds: int) -> dict[str, list[float]]:
  """Times functions in alternation (A B A B …).

  Args:
    ways: name → function.
    budget: seconds after which no new round starts; the first round always runs.
    rounds: maximum number of rounds.

  Returns:
    Name → seconds of each round.
  """
  times = {name: [] for name in ways}
  end = time.perf_counter() + budget
  for turn in range(rounds):
    if turn and time.perf_counter() > end:
      break
    for name, call in ways.items():
      times[name].append(seconds(call)[0])
  return times


def race(name: str, ours: Callable, peers: Mapping[str, Callable], *,
         distance: Callable | None = None, dtype: str = "float32", budget: float = 20.0,
         rounds: int = 9, once: bool = False, flops: float | None = None,
         least: float | None = None, **more) -> dict:
  """Times our implementation against the configurations of the peer and returns a row.

  Every implementation first runs untimed, which compiles it, and the results are compared. A
  configuration of the peer that fails is left out as long as another one runs.

  Args:
    name: of the row.
    ours: our implementation; returns its result.
    peers: name → configuration of the peer; empty if the peer is not installed.
    distance: (our result, result of a peer) → difference.
    dtype: computation dtype of both sides, which determines the tolerance.
    budget: see `in_turns`.
    rounds: see `in_turns`.
    once: time a single round, and only the configuration of the peer with the fastest first run.
    flops: floating-point operations, for rates in GFLOP/s.
    least: seconds of the roofline, for the fraction of it that we reach.
    **more: further fields of the row.

  Raises:
    RuntimeError: the results differ, or no configuration of the peer runs.
  """
  progress(name)
  first, left_out = {"": seconds(ours)}, {}
  for way, call in peers.items():
    progress(f"  first run: {way}")
    try:
      first[way] = seconds(call)
    except Exception as error:  # torch.compile needs a C++ compiler and has limits
      left_out[way] = (str(error).splitlines() or [""])[0][:200]
      progress(f"  {way} left out: {left_out[way]}")
  if left_out and len(first) == 1:
    raise RuntimeError(f"{name}: the peer does not run: {left_out}")
  ways = {way: peers.get(way, ours) for way in first}
  differences = {}
  if distance is not None:
    differences = {way: float(distance(first[""][1], result))
                   for way, (_, result) in first.items() if way}
    for way, difference in differences.items():
      if not difference <= tolerance(dtype):
        raise RuntimeError(f"{name}: {way} differs from ours by {difference:.3g}")
  spent = {way: time for way, (time, _) in first.items() if way}
  del first
  if once and spent:
    best = min(spent, key=spent.get)
    ways = {"": ours, best: peers[best]}
  times = in_turns(ways, budget=budget, rounds=1 if once else rounds)
  medians = {way: statistics.median(values) for way, values in times.items()}
  mine = medians.pop("")
  row = best_row(name, mine, medians, unit="s", rounds=len(times[""]))
  if differences:
    row["largest_difference"] = max(differences.values())
    row["differences"] = differences
  if flops:
    row["gflops"] = flops / mine / 1e9
    row["peer_gflops"] = row["peer"] and flops / row["peer"] / 1e9
  if least:
    row["roofline_fraction"] = least / mine
  if left_out:
    row["left_out"] = left_out
  return row | more


def tolerance(dtype: str) -> float:
  """Returns the largest tolerated difference between results."""
  if dtype == "float32" and jax.default_backend() == "cpu":
    # Ours and channels-first agree to 1e-5. PyTorch's channels-last group norm sums the voxels in
    # float32, with an error of 2e-3 at 128³.
    return 1e-2
  # Accelerators round the factors of float32 products to TF32 or bfloat16. In bfloat16 a voxel has
  # an error of a few per cent, and the worst of some million voxels counts.
  return {"float32": 2e-2, "bfloat16": 0.5}[dtype]


def best_row(name: str, ours: float, peers: Mapping[str, float], *, unit: str,
             faster_is_less: bool = True, **more) -> dict:
  """Returns a row against the best peer.

  Args:
    name: of the row.
    ours: our figure.
    peers: name → figure of a peer.
    unit: of the figures.
    faster_is_less: whether smaller figures are better.
    **more: further fields of the row.
  """
  if not peers:
    return {"name": name, "ours": ours, "peer": None, "ratio": None, "unit": unit, **more,
            "note": NO_PEER}
  best = (min if faster_is_less else max)(peers, key=peers.get)
  ratio = peers[best] / ours if faster_is_less else ours / peers[best]
  row = {"name": name, "ours": ours, "peer": peers[best], "ratio": ratio, "unit": unit,
         "peer_kind": best, **more}
  if len(peers) > 1:
    row["peers"] = dict(peers)
  return row


def not_measured(name: str, why: str) -> dict:
  """Returns a row without figures, with the reason."""
  return {"name": name, "ours": None, "peer": None, "ratio": None, "note": f"not measured: {why}"}
