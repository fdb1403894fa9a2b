"""Tries levels of growth one after the other, and writes the network of the first that is allowed.

    OUT/growth.json       network, data, scores before and at every level, the level that was taken
    OUT/levels/LEVEL/     the runs of the levels
    OUT/data/             the new data with masks of the network before, for level 2
    OUT/checkpoints/ …    the grown network, as that of any run; written last

The highest level learns a new class best and may cost known ones most. If it costs them too much,
networks between the one before and the one after are judged, then the level below is tried.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import logging
from typing import Any

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.grow import judge as judging
from condseg_jax.grow.blend import blended
from condseg_jax.grow.growth import data_digest
from condseg_jax.grow.growth import Growth
from condseg_jax.grow.judge import Judge
from condseg_jax.grow.judge import Row
from condseg_jax.grow.levels import settings
from condseg_jax.grow.result import write_result
from condseg_jax.grow.teach import digest
from condseg_jax.grow.teach import taught
from condseg_jax.loading import load
from condseg_jax.model_io.load import read_model
from condseg_jax.predictor import Predictor
from condseg_jax.system.atomic import write_text
from condseg_jax.system.lock import held
from condseg_jax.train.loop import train
from condseg_jax.train.setup import Setup
from condseg_jax.train.start import read_start

RECORD = "growth.json"
VERSION = 2
GAIN = 0.005  # of the mean Dice on new cases, that a level has to add
SHARES = (1.0, 0.85, 0.7)  # of the way from the network before, see `blend`, until one is allowed

log = logging.getLogger("condseg_jax")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a growth.

  Attributes:
    taken: the level; None if none was.
    share: how far it was gone from the network before, see `blend.blended`.
    rows: what classes have before and after; of the last attempt if no level was taken.
    reasons: attempt, `level 2` or `level 2 at 0.85`, → what speaks against it.
  """

  taken: int | None
  share: float
  rows: Sequence[Row]
  reasons: Mapping[str, str]


def grow(growth: Growth, out, *, level: int | None = None, steps: int = 0) -> Outcome | None:
  """Grows a network; the same call goes on after an interruption.

  Args:
    growth: network and data.
    out: folder for the grown network.
    level: the level to train, whatever it costs known classes; None tries those of
      `Growth.order`, and takes the first that adds to new cases while no known class loses more
      than `judge.TOLERANCE`.
    steps: length of every level; 0 for a share of the network's training.

  Returns:
    The outcome; None after a SIGTERM.

  Raises:
    InputError: `out` holds something else; see also `train.loop.train`.
  """
  out = epath.Path(out)
  with held(out):
    record = _begun(growth, out, level, steps)
    before = _bare(growth.source)
    judge = Judge.of(growth, before)
    if "before" not in record:
      record["before"] = judge.scores(before)
      _write(out, record)
    outcome = Outcome(None, 1.0, (), {})
    for number in growth.order if level is None else [level]:
      workdir = out / "levels" / str(number)
      if _train(growth, number, workdir, steps, before, out) != "finished":
        return None
      for share in SHARES if level is None and number == 2 else (1.0,):
        title = f"level {number}" + ("" if share == 1 else f" at {share:g}")
        if title not in record["levels"]:
          record["levels"][title] = judge.scores(_between(growth, workdir, share))
          _write(out, record)
        rows = judging.compared(record["before"], record["levels"][title])
        reason, hopeless = _objection(growth, rows)
        log.info("%s: mean Dice %.3f on new cases%s", title, judging.reached(rows),
                 reason and f"; {reason}")
        outcome = Outcome(None, share, rows,
                          {**outcome.reasons, title: reason} if reason else outcome.reasons)
        if level is not None or not reason:
          outcome = dataclasses.replace(outcome, taken=number)
        if outcome.taken is not None or hopeless:
          break
      if outcome.taken is not None:
        write_result(growth, out, workdir, number, outcome.share, outcome.rows)
        break
    record |= {"taken": outcome.taken, "share": outcome.share, "reasons": outcome.reasons,
               "rows": [row._asdict() for row in outcome.rows]}
    _write(out, record)
    return outcome


def _objection(growth: Growth, rows: Sequence[Row]) -> tuple[str, bool]:
  """Returns what speaks against a network, or "", and whether the way to it has nothing better."""
  loss = judging.worst([row for row in rows if row.name not in growth.new])
  if loss is not None:
    return describe(loss), False
  gain = judging.reached(rows) - judging.reached(rows, before=True)
  return ("", False) if gain >= GAIN else (f"new cases gain {100 * gain:+.1f} points", True)


def describe(row: Row) -> str:
  """Says what a class loses, in one line."""
  of = {"new": "new cases", "old": "old cases that it has not seen",
        "agreement": "new cases, by agreement with the network before"}[row.by]
  return (f"{row.name} loses {100 * row.loss:.1f} points of Dice "
          f"[{-100 * row.high:.1f}, {-100 * row.low:.1f}] on {row.cases} {of}")


def _bare(source: str) -> Predictor:
  """Loads a network without what was tuned for it, so that networks are compared alone."""
  return dataclasses.replace(load(source, members=1), cleaning={}, calibration={}, quality={})


def _between(growth: Growth, workdir: epath.Path, share: float) -> Predictor:
  """Loads a network on the way from the one before to the one that a level has trained."""
  after = blended(growth.network, read_model(workdir), share)
  return dataclasses.replace(_bare(str(workdir)), variables=after.variables)


def _train(growth: Growth, level: int, workdir: epath.Path, steps: int, before: Predictor,
           out: epath.Path) -> str:
  config = settings(growth, level, growth.source, steps)
  stores = [*growth.stores]
  if level == 2:
    if growth.teaches and not growth.old_stores:
      stores = taught(growth, before, out / "data")
    stores += growth.old_stores
  log.info("level %d: %d steps in %s", level, config.train.steps, workdir)
  return train(config, stores, workdir, resume="last_whole", fold=growth.fold(level),
               start=lambda: _Start(read_start(config.init), growth))


@dataclasses.dataclass(frozen=True)
class _Start:
  """A start whose table also has the pairs of classes that the user says overlap."""

  start: Any
  growth: Growth

  def adapted(self, setup: Setup) -> Setup:
    setup = self.start.adapted(setup)
    table = dataclasses.replace(setup.record.table, overlapping=self.growth.table.overlapping)
    return dataclasses.replace(setup, record=setup.record._replace(table=table))

  @property
  def taken(self) -> Callable:
    return self.start.taken


def _begun(growth: Growth, out: epath.Path, level: int | None, steps: int) -> dict[str, Any]:
  """Returns the record of what was done before, or writes that of a new growth."""
  request = {"version": VERSION, "network": digest(growth.network),
             "data": data_digest(growth.stores), "old_data": data_digest(growth.old_stores),
             "level": level, "steps": steps, "overlapping": [list(p) for p in growth.overlapping]}
  path = out / RECORD
  if path.exists():
    try:
      record = json.loads(path.read_text(encoding="utf-8"))
      same = {key: record[key] for key in request} == request
      record["levels"] = dict(record["levels"])
    except (ValueError, KeyError, TypeError, AttributeError):
      raise InputError(path, "is damaged", "remove the folder, or choose another `out`") from None
    if not same:
      raise InputError(out, "was begun with another network, other data or other flags",
                       "choose another `out`, or the command it was begun with", usage=True)
    return record
  if (out / "checkpoints").exists() or (out / "folds.json").exists():
    raise InputError(out, "holds a run", "choose another `out`", usage=True)
  out.mkdir(parents=True, exist_ok=True)
  record = {**request, "source": growth.source, "new": list(growth.new),
            "known": list(growth.known), "levels": {}}
  _write(out, record)
  return record


def _write(out: epath.Path, record: Mapping[str, Any]) -> None:
  write_text(out / RECORD, json.dumps(record, indent=1))
