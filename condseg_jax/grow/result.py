"""Writes the grown network as a run of its own."""

from collections.abc import Sequence
import dataclasses
import json

from etils import epath
import jax.numpy as jnp

from condseg_jax.grow.blend import blended
from condseg_jax.grow.growth import Growth
from condseg_jax.grow.judge import Row
from condseg_jax.model_io.load import read_model
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.run_files import RunFiles
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState


def write_result(growth: Growth, out: epath.Path, workdir: epath.Path, level: int, share: float,
                 rows: Sequence[Row]) -> None:
  """Writes the network of a level to `out`, unless it is there.

  Its record keeps what was tuned for the classes before: component filters, and, below level 2
  where their logits are the same, calibration. Its settings are those of the network's training,
  so that the next growth begins with them.

  Args:
    growth: network and data.
    out: folder of the grown network.
    workdir: run of the level.
    level: its number.
    share: how far to go from the network before, see `blend.blended`.
    rows: its rows.
  """
  grown = blended(growth.network, read_model(workdir), share)
  record = _record(growth, grown.record, workdir, level)
  state = TrainState.create(grown.variables, make_optimizer(record.config.optimizer), ema=False)
  # Those of the network before and of the level, so that its training has finished.
  state = dataclasses.replace(
      state, step=jnp.int32(growth.network.facts["step"] + grown.facts["step"]))
  by = {row.name: row for row in rows if row.by != "agreement"}
  dice = {f"held_out/dice/{name}": row.after for name, row in by.items()}
  checkpoints = Checkpoints(out)
  try:
    if checkpoints.last_step is not None:
      return
    files = RunFiles(out, record.config.to_dict())
    files.plan(json.loads((workdir / "plan.json").read_text(encoding="utf-8")))
    mean = sum(dice.values()) / max(len(dice), 1)
    files.scalars(int(state.step), {"held_out/mean_dice": mean, **dice})
    files.finish("finished", {"step": int(state.step), "grown_by_level": level, "share": share})
    checkpoints.save(state, record, mean)
    checkpoints.wait()
  finally:
    checkpoints.close()


def _record(growth: Growth, record: ModelRecord, workdir: epath.Path, level: int) -> ModelRecord:
  before, added = growth.record, {n: f for n, f in record.cleaning.items() if n in growth.new}
  config = dataclasses.replace(before.config, conditioning=record.config.conditioning,
                               init=dataclasses.replace(record.config.init, source=str(workdir)))
  if config.data.classes:
    config = config.override({"data.classes": record.table.names})
  record = record._replace(config=config, cleaning={**before.cleaning, **added})
  if level == 2:
    return record
  return record._replace(calibration=before.calibration, quality=before.quality)
