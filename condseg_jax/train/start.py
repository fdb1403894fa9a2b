"""Starts a run from the parameters of another run or of a bundle.

Classes are matched by name. Intensities are normalised as the source normalised them, since its
parameters were learned so; spacing and subvolume are those of the new run. Whatever does not fit is
named, and stays random.
"""

from collections.abc import Mapping
import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp

from condseg_jax.classes import ClassTable
from condseg_jax.classes import distinct_codes
from condseg_jax.config import Init
from condseg_jax.config import Model
from condseg_jax.data.fingerprint import joined
from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.load import is_bundle
from condseg_jax.model_io.load import read_model
from condseg_jax.model_io.own_rows import own_rows
from condseg_jax.model_io.own_rows import with_own_rows
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.model_io.transfer import of_encoder
from condseg_jax.model_io.transfer import Transfer
from condseg_jax.model_io.transfer import transfer
from condseg_jax.models.build import build_model
from condseg_jax.models.class_axes import class_axes
from condseg_jax.models.class_axes import ClassAxes
from condseg_jax.plan import Plan
from condseg_jax.plan import same_spacing
from condseg_jax.train.new_classes import grown
from condseg_jax.train.new_classes import with_means
from condseg_jax.train.setup import check_rivals
from condseg_jax.train.setup import Setup
from condseg_jax.train.state import TrainState

# Settings of a network that may differ without an effect on what its arrays mean.
_FREE = ("remat", "dtype", "deep_supervision")

log = logging.getLogger("condseg_jax")


@dataclasses.dataclass(frozen=True)
class Start:
  """A network to start from.

  Attributes:
    source: the network.
    path: where it was read, for messages.
    what: see `config.Init`.
  """

  source: Bundle
  path: str
  what: str

  def adapted(self, setup: Setup) -> Setup:
    """Returns the parts of a run with what comes along of classes and plan, and logs it."""
    record, theirs = setup.record, self.source.record
    table = record.table
    if self.what == "grow":
      if set(theirs.table.names) - set(table.names) and theirs.training:
        record = record._replace(training=joined(theirs.training, record.training))
      record = record._replace(priors={**theirs.priors, **record.priors})
    if self.what != "encoder":
      table = (grown if self.what == "grow" else inherited)(table, theirs.table)
      check_rivals(record.config.loss.objective, table)
      for line in class_lines(theirs.table, table):
        log.info("%s", line)
    plan, lines = adapted_plan(theirs.plan, record.plan)
    for line in (*lines, *model_lines(theirs.config.model, record.config.model)):
      log.info("%s", line)
    model = build_model(record.config.model, record.config.conditioning, table.codes)
    return dataclasses.replace(
        setup, record=record._replace(table=table, plan=plan), model=model,
        plan_summary={**setup.plan_summary, "plan": plan.to_json()})

  def taken(self, setup: Setup, state: TrainState) -> TrainState:
    """Returns the state at step 0 with what is taken of the parameters, and logs it.

    Raises:
      InputError: nothing fits.
    """
    source = self.source
    if self.what == "grow" and setup.record.config.conditioning == own_rows(
        source.record.config.conditioning):
      source = with_own_rows(source)
    result = take(source, setup.record, state.averaged, self.what)
    if not result.taken:
      name, reason = next(iter(result.left.items()), ("the encoder", "this network has none"))
      raise InputError("init.source",
                       f"nothing of {self.path} fits this network ({_short(name)}: {reason})",
                       "use the settings of model and conditioning of the source")
    log.info("starting from %s: %d of %d arrays taken", self.path, len(result.taken),
             len(result.taken) + len(result.left))
    for name, reason in result.left.items():
      log.warning("%s stays random: %s", _short(name), reason)
    for name in result.unused:
      log.warning("%s of the source is not used: this network has none", _short(name))
    taken = result.variables
    if self.what == "grow":
      table = setup.record.table
      known = [table.index(name) for name in source.record.table.names]
      taken = with_means(taken, _axes(setup.record), sorted({*range(len(table))} - {*known}), known)
    # Copies: the step reuses the memory of its state.
    params, statistics = jax.tree.map(jnp.array, (taken["params"], taken.get("statistics")))
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=ema, statistics=statistics)


def read_start(init: Init) -> Start:
  """Reads what `init.source` names, of an ensemble the first member.

  Of a run it is the best checkpoint; to grow, the last one, which predicts by default.

  Raises:
    InputError: it is missing, damaged, of a newer format, or has no decoder to take.
  """
  checkpoint = "last" if is_bundle(init.source) or init.what == "grow" else "best"
  source = read_model(init.source, checkpoint, members=1, encoder=init.what == "encoder")
  return Start(source, init.source, init.what)


def take(source: Bundle, record: ModelRecord, variables: Mapping[str, Any],
         what: str) -> Transfer:
  """Takes over variables of a network into those of another, classes matched by name.

  Args:
    source: the network to take from.
    record: config, class table and plan of the network with `variables`.
    variables: the target.
    what: see `config.Init`.
  """
  ours, theirs = record.table, source.record.table
  rows = {i: theirs.index(name) for i, name in enumerate(ours.names) if name in theirs.names}
  return transfer(jax.device_get(source.variables), jax.device_get(variables),
                  source_classes=_axes(source.record), target_classes=_axes(record), rows=rows,
                  wanted=of_encoder if what == "encoder" else None)


def inherited(ours: ClassTable, theirs: ClassTable) -> ClassTable:
  """Returns our class table with what theirs says of the classes of the same names.

  They keep the code and the colour that they have there, and their sides unless our table gives
  them some. Presets of theirs are added, with the classes that are in ours, and pairs of classes
  that may overlap.
  """
  known = {c.name: c for c in theirs.classes}
  capacity = max(ours.capacity, theirs.capacity)
  codes = distinct_codes(ours.names, capacity, {c.name: c.code for c in theirs.classes})
  classes = tuple(
      dataclasses.replace(known[c.name], no_mirror=c.no_mirror or known[c.name].no_mirror)
      if c.name in known else dataclasses.replace(c, code=code)
      for c, code in zip(ours.classes, codes, strict=True))
  presets = {key: tuple(n for n in group if n in ours.names)
             for key, group in theirs.presets.items()}
  pairs = {p for p in theirs.overlapping if set(p) <= set(ours.names)} | {*ours.overlapping}
  return ClassTable(classes, {**{k: group for k, group in presets.items() if group},
                              **ours.presets}, capacity, tuple(sorted(pairs)))


def adapted_plan(theirs: Plan, ours: Plan) -> tuple[Plan, list[str]]:
  """Returns our plan with the intensities of theirs, where both are of one modality; with reasons.

  Args:
    theirs: plan of the source.
    ours: plan of the new data.
  """
  lines = []
  if not same_spacing(theirs.spacing, ours.spacing):
    lines.append(f"spacing is {ours.spacing}, that of the data; the source has {theirs.spacing}, "
                 "which data.spacing would ask for")
  if theirs.modality != ours.modality:
    lines.append(f"intensities are normalised anew: the images are {ours.modality}, those of the "
                 f"source {theirs.modality}")
    return ours, lines
  if ours.modality == "ct":
    lines.append(f"intensities are normalised as in the source: clipped to {theirs.low:.6g} to "
                 f"{theirs.high:.6g}, mean {theirs.mean:.6g}, deviation {theirs.sd:.6g}")
  return dataclasses.replace(ours, low=theirs.low, high=theirs.high, mean=theirs.mean,
                             sd=theirs.sd), lines


def class_lines(theirs: ClassTable, ours: ClassTable) -> list[str]:
  """Says which classes are taken over, which are new, and which are left behind."""
  parts = (("taken over", [n for n in ours.names if n in theirs.names]),
           ("new", [n for n in ours.names if n not in theirs.names]),
           ("left behind, since no training data annotate them",
            [n for n in theirs.names if n not in ours.names]))
  return [f"classes {what}: {', '.join(names)}" for what, names in parts if names]


def model_lines(theirs: Model, ours: Model) -> list[str]:
  """Says which settings of the network differ, since arrays of equal shape then mean another."""
  return [f"model.{key} is {value}, in the source {getattr(theirs, key)}"
          for key, value in vars(ours).items()
          if key not in _FREE and value != getattr(theirs, key)]


def _short(name: str) -> str:
  return name.removeprefix("params/")


def _axes(record: ModelRecord) -> ClassAxes:
  config = record.config
  return class_axes(config.model, config.conditioning, len(record.table), record.plan.channels)
