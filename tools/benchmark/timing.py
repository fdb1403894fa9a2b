"""Timing in turns, and the row that comes of it: the one clock of all suites."""

from collections.abc import Callable
from collections.abc import Mapping
import statistics
import sys
import time

import jax

NO_PEER = "peer not measured: needs the bench extra"


def progress(text: str) -> None:
  """Tells on stderr what is being done; the figures go elsewhere."""
  print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def seconds(call: Callable) -> tuple[float, object]:
  """How long a call takes until its result is there, and the result."""
  begin = time.perf_counter()
  result = jax.block_until_ready(call())
  return time.perf_counter() - begin, result


def in_turns(ways: Mapping[str, Callable], *, budget: float, rounds: int) -> dict[str, list[float]]:
  """Seconds of every way, A B A B …, until the rounds or the budget of seconds are used up.

  One round is always done, so that work which is longer than the budget is timed once.
  """
  found = {name: [] for name in ways}
  end = time.perf_counter() + budget
  for turn in range(rounds):
    if turn and time.perf_counter() > end:
      break
    for name, call in ways.items():
      found[name].append(seconds(call)[0])
  return found


def race(name: str, ours: Callable, peers: Mapping[str, Callable], *,
         distance: Callable | None = None, dtype: str = "float32", budget: float = 20.0,
         rounds: int = 9, once: bool = False, flops: float | None = None,
         least: float | None = None, **more) -> dict:
  """A row: our seconds, those of the best peer, and how far we are ahead.

  Every way runs untimed first, which compiles it, and its result is compared with ours. A way of
  the peer that does not run is left out while another does.

  Args:
    name: of the row.
    ours: our way; gives its result.
    peers: the ways of the peer by name; none where it is not installed.
    distance: (our result, a peer's result) → how much they differ.
    dtype: of the computation, on both sides; how much may differ depends on it.
    budget, rounds: see `in_turns`.
    once: for work so long that one round is timed, and of the peer's ways only that one which was
      the fastest in its first run.
    flops: floating-point operations of the work, for rates in GFLOP/s.
    least: seconds of the roofline, for the fraction of it that we reach.
    more: further fields of the row.

  Raises:
    RuntimeError: a peer's result differs, or none of them runs.
  """
  progress(name)
  first, left_out = {"": seconds(ours)}, {}
  for way, call in peers.items():
    progress(f"  first run: {way}")
    try:
      first[way] = seconds(call)
    except Exception as error:  # torch.compile needs a C++ compiler and does not take everything
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
  medians = {way: statistics.median(found) for way, found in times.items()}
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
  """The largest difference that is still the same result."""
  if dtype == "float32" and jax.default_backend() == "cpu":
    # Ours and channels-first agree to 1e-5. PyTorch's channels-last group norm adds up the voxels
    # in float32 and is 2e-3 away from the true value at 128³.
    return 1e-2
  # Accelerators round the factors of float32 products too, to TF32 or bfloat16. A bfloat16 network
  # keeps a few per cent in each of some million voxels, of which the worst counts.
  return {"float32": 2e-2, "bfloat16": 0.5}[dtype]


def best_row(name: str, ours: float, peers: Mapping[str, float], *, unit: str,
             faster_is_less: bool = True, **more) -> dict:
  """A row against the best of several peers."""
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
  """A row that waits for its machine."""
  return {"name": name, "ours": None, "peer": None, "ratio": None, "note": f"not measured: {why}"}
