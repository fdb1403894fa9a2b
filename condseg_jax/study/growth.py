"""Trials that grow: a network learns the classes that its training has left out."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import json
from pathlib import Path
import time
from typing import Any

from condseg_jax.config import Config
from condseg_jax.data.store import open_prepared
from condseg_jax.data.store import Store
from condseg_jax.grow import ladder
from condseg_jax.grow.growth import make_growth
from condseg_jax.grow.growth import read_source
from condseg_jax.grow.levels import SHARE
from condseg_jax.study.declare import Growth
from condseg_jax.train.loop import train
from condseg_jax.train.start import read_start

SECONDS = "seconds.json"  # of the calls so far, in the folder of the trial


def grow(growth: Growth, config: Config, base: Path,
         out: Path) -> tuple[Path, float, dict[str, Any]]:
  """Grows a network; resumes.

  Args:
    growth: what joins, and how.
    config: that of the training of `base`.
    base: its folder.
    out: folder of the grown run.

  Returns:
    The folder of the network, which is that of `base` if no level was taken; the seconds it took;
    and `{"growth": {…}}` with the level that was taken, and what spoke against others.

  Raises:
    KeyboardInterrupt: after a SIGTERM.
  """
  stores = open_prepared(config.data.root, config.data.spacing)
  new = annotating(stores, growth.new)
  old = annotating(stores, config.data.include_classes) if growth.old else []
  started, before = time.monotonic(), _seconds(out)
  try:
    if growth.level == "naive":
      taken = _naive(config, new, base, out)
    else:
      made = make_growth(str(base), read_source(str(base)), new, old, named=True)
      level = None if growth.level == "auto" else int(growth.level)
      outcome = ladder.grow(made, out, level=level)
      taken = None if outcome is None else {
          "taken": outcome.taken, "share": outcome.share, "reasons": dict(outcome.reasons)}
  finally:
    seconds = before + time.monotonic() - started
    out.mkdir(parents=True, exist_ok=True)
    (out / SECONDS).write_text(json.dumps(seconds))
  if taken is None:
    raise KeyboardInterrupt
  return base if taken.get("taken", 0) is None else out, seconds, {"growth": taken}


def annotating(stores: Iterable[Store], names: Sequence[str]) -> list[Store]:
  """Returns the parts of stores whose cases annotate one of some classes."""
  parts = (dataclasses.replace(s, cases=tuple(c for c in s.cases if {*c.annotated} & {*names}))
           for s in stores)
  return [part for part in parts if part.cases]


def _naive(config: Config, stores: Sequence[Store], base: Path, out: Path) -> dict | None:
  """Trains on, with new images alone and nothing that holds on to what was known."""
  names = tuple(dict.fromkeys(n for s in stores for c in s.cases for n in c.annotated))
  config = config.override({
      "data.include_classes": names, "data.classes": (), "data.presets": {}, "data.weights": (),
      "data.lateral_axes": {k: v for k, v in config.data.lateral_axes.items() if k in names},
      "train.steps": round(SHARE[2] * config.train.steps), "init.source": str(base),
      "init.what": "grow"})
  start = functools.partial(read_start, config.init)
  return {} if train(config, stores, out, start=start) == "finished" else None


def _seconds(out: Path) -> float:
  try:
    return float(json.loads((out / SECONDS).read_text()))
  except (OSError, ValueError):
    return 0.0
