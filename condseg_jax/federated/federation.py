"""A federated training from the first round to the last, as the server sees it: a run in a folder.

    WORKDIR/federation.json    rounds, sites and their descriptions, what each round brought
    WORKDIR/checkpoints/ …     the global network, saved after every round, as that of any run
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from etils import epath
import jax.numpy as jnp
import numpy as np

from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.federated.average import average
from condseg_jax.federated.average import fault
from condseg_jax.federated.average import Update
from condseg_jax.federated.description import Description
from condseg_jax.federated.description import pooled
from condseg_jax.federated.site import flat
from condseg_jax.federated.site import Rounds
from condseg_jax.federated.site import settings
from condseg_jax.federated.site import unflat
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.class_axes import class_axes
from condseg_jax.models.network import initial_variables
from condseg_jax.system.atomic import write_text
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.run_files import RunFiles
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState

RECORD = "federation.json"
VERSION = 1


class Federation:
  """The state of a federated training. After every round it is on disk, and read from there again.

  Args:
    config: settings of the training.
    rounds: see `Rounds`.
    workdir: folder of the run.

  Raises:
    InputError: the folder holds another run, or is damaged.
  """

  def __init__(self, config: Config, rounds: Rounds, workdir):
    self.rounds, self.workdir = rounds, epath.Path(workdir)
    self.config = settings(config, rounds)
    self._request = {"version": VERSION, "rounds": dataclasses.asdict(rounds),
                     "config": self.config.to_dict()}
    self._tree: dict[str, Any] = {**self._request, "sites": {}, "history": []}
    self.record: ModelRecord | None = None
    self.arrays: dict[str, np.ndarray] = {}
    self._read()

  @property
  def done(self) -> int:
    """The number of rounds that are done."""
    return len(self._tree["history"])

  @property
  def taught(self) -> list[str]:
    """The classes that the global network may teach: those it has learned well enough."""
    latest: dict[str, float] = {}
    for entry in self._tree["history"]:
      latest |= entry["dice"]
    return [name for name, dice in latest.items() if dice >= self.rounds.competence]

  def begin(self, described: Mapping[str, Description]) -> None:
    """Starts the training with the sites that are there.

    Raises:
      InputError: sites that do not fit together.
    """
    self.record = record = pooled(self.config, described)
    model = build_model(record.config.model, record.config.conditioning, record.table.codes)
    self.arrays = flat(initial_variables(model, record.config.seed,
                                         (*record.plan.subvolume, record.plan.channels)))
    self._tree["sites"] = {name: site.to_json() for name, site in described.items()}
    self._write()
    self._save(0, 0.0)

  def finish_round(self, updates: Mapping[str, Update],
                   absent: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Averages what the sites sent, saves the network, and returns the entry of the round.

    A site whose update is not one of this network, or not finite, is left out of the round by name.

    Args:
      updates: name of a site → what it sent.
      absent: site → why nothing came from it.

    Raises:
      InputError: no site sent a usable update.
    """
    assert self.record is not None
    names = self.record.table.names
    left_out = dict(absent or {})
    for name, update in updates.items():
      if reason := fault(update, self.arrays, names):
        left_out[name] = reason
    used = {name: update for name, update in updates.items() if name not in left_out}
    if not used:
      raise InputError(f"round {self.done + 1}", "no site has sent a usable update: " + "; ".join(
          f"{name}: {reason}" for name, reason in left_out.items()), "see the log of the sites")
    axes = class_axes(self.record.config.model, self.record.config.conditioning, len(names),
                      self.record.plan.channels)
    self.arrays = average(self.arrays, used, axes, names)
    dice = _mean_dice(used)
    entry = {"round": self.done + 1, "sites": {n: dict(u.samples) for n, u in used.items()},
             "left_out": left_out, "dice": dice}
    self._tree["history"].append(entry)
    self._write()  # before the checkpoint: without it, the entry is dropped and the round repeated
    self._save(self.done * self.rounds.steps, float(np.mean([*dice.values()])))
    return entry

  def _save(self, step: int, dice: float) -> None:
    assert self.record is not None
    params = unflat(self.arrays)["params"]
    state = TrainState.create({"params": params}, make_optimizer(self.record.config.optimizer),
                              ema=False)
    state = dataclasses.replace(state, step=jnp.int32(step))
    checkpoints = Checkpoints(self.workdir)
    try:
      checkpoints.save(state, self.record, dice)
      checkpoints.wait()
    finally:
      checkpoints.close()
    files = RunFiles(self.workdir, self.record.config.to_dict(), resumed=step > 0)
    files.plan({"plan": self.record.plan.to_json()})
    if step:
      files.scalars(step, {f"dice/{k}": v for k, v in self._tree["history"][-1]["dice"].items()})
    finished = self.done == self.rounds.rounds
    files.finish("finished" if finished else "running", {"step": step, "rounds": self.done})

  def _write(self) -> None:
    self.workdir.mkdir(parents=True, exist_ok=True)
    write_text(self.workdir / RECORD, json.dumps(self._tree, indent=1))

  def _read(self) -> None:
    path = self.workdir / RECORD
    if not path.exists():
      if (self.workdir / "checkpoints").exists():
        raise InputError(self.workdir, "holds a run that is not federated",
                         "choose another workdir", usage=True)
      return
    try:
      tree = json.loads(path.read_text(encoding="utf-8"))
      same = all(tree[key] == json.loads(json.dumps(value))
                 for key, value in self._request.items())
      found: dict[str, Any] = {**self._request, "sites": dict(tree["sites"]),
                               "history": list(tree["history"])}
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(path, "is damaged", "restore it, or choose another workdir") from error
    if not same:
      raise InputError(self.workdir, "was begun with other settings or rounds",
                       "give those it was begun with, or choose another workdir", usage=True)
    checkpoints = Checkpoints(self.workdir, read_only=True)
    try:
      step = checkpoints.last_step
      if step is None:
        return
      self.record = checkpoints.read_record(step)
      self.arrays = flat(checkpoints.restore_variables(step))
    finally:
      checkpoints.close()
    entries, found["history"] = found["history"], found["history"][:step // self.rounds.steps]
    self._tree = found
    if self.done < len(entries):
      self._write()
    if self.done * self.rounds.steps != step:
      raise InputError(path, f"has {self.done} rounds, the last checkpoint is of step {step}",
                       "restore both from one copy, or choose another workdir")


def _mean_dice(updates: Mapping[str, Update]) -> dict[str, float]:
  """Returns class → mean soft Dice over all annotated samples of a round."""
  out = {}
  for name in dict.fromkeys(name for u in updates.values() for name in u.dice):
    pairs = [(u.dice[name], u.samples.get(name, 0)) for u in updates.values() if name in u.dice]
    total = sum(n for _, n in pairs)
    if total:
      out[name] = sum(dice * n for dice, n in pairs) / total
  return out
