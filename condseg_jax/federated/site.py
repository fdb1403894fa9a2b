"""A site: it trains the network on its own data for some steps, and sends what it has learned."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from condseg_jax.config import Config
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.federated.average import Arrays
from condseg_jax.federated.average import Update
from condseg_jax.federated.teacher import make_teach
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.train.loop import training_scalars
from condseg_jax.train.setup import make_setup
from condseg_jax.train.setup import make_step_and_state
from condseg_jax.train.state import make_schedule
from condseg_jax.train.state import TrainState

# Settings of a training that have no meaning, or another one, where data lie apart.
NEUTRAL: Mapping[str, Any] = {
    "data.root": "", "data.cache": "", "data.plan": "config", "data.weights": (),
    "data.hold_out": 0.0, "data.max_cases": 0, "data.include_classes": (), "data.bare": 0.0,
    "train.minutes": 0.0, "train.ema_decay": 0.0, "train.driver": "jit", "train.partition": 1,
    "train.only_classes": (), "init.source": ""}


@dataclasses.dataclass(frozen=True)
class Rounds:
  """How the sites train.

  Attributes:
    rounds: number of rounds R.
    steps: steps of a site in a round L; the schedule of the rate is that of R · L steps.
    proximal: μ of FedProx, 0 for none.
    teaching: β of masks that the global network makes of classes that a site does not annotate,
      below 1; 0 for none.
    competence: soft Dice in training from which on a class is taught.
  """

  rounds: int = 20
  steps: int = 50
  proximal: float = 0.0
  teaching: float = 0.0
  competence: float = 0.5

  def __post_init__(self) -> None:
    for name, good in (("rounds", self.rounds > 0), ("steps", self.steps > 0),
                       ("proximal", 0 <= self.proximal < np.inf),
                       ("teaching", 0 <= self.teaching < 1), ("competence", 0 <= self.competence)):
      if not good:
        raise InputError(name, f"is {getattr(self, name):g}", "see condseg-federate --help",
                         usage=True)


def settings(config: Config, rounds: Rounds) -> Config:
  """Returns the settings of a federated training."""
  if config.conditioning.mechanism == "batch_norm" and config.conditioning.position != "none":
    raise InputError("conditioning.mechanism", "'batch_norm' needs the moments of the images of "
                     "all sites", "use another mechanism", usage=True)
  return config.override({**NEUTRAL, "train.steps": rounds.rounds * rounds.steps})


class Site:
  """The training of a site. Its optimizer goes on from round to round, as do its samples.

  Args:
    record: of the network, from the first round on the same at all sites.
    stores: the data of the site, prepared at the spacing of the plan.
    rounds: see `Rounds`.

  Raises:
    InputError: data that do not fit the network.
  """

  def __init__(self, record: ModelRecord, stores: Sequence[Store], rounds: Rounds):
    self._setup = make_setup(record.config, stores, record, "the federated network")
    for dataset in self._setup.training:
      for name in dataset.annotated:
        if name not in record.table.names:
          raise InputError(dataset.store.root, f"annotates {name!r}, which the network lacks",
                           "use the data that the site described at the start")
    self._rounds, self._table = rounds, record.table
    self._driver, self._state = make_step_and_state(self._setup)
    self._steps = self._driver.place_steps(record.config.train.steps)
    self._schedule = make_schedule(record.config.optimizer, record.config.train.steps)
    self._teach = make_teach(self._setup.model, record.table, rounds.teaching)

  def train(self, number: int, arrays: Arrays, taught: Collection[str] = ()) -> Update:
    """Trains one round.

    Args:
      number: of the round, from 0.
      arrays: the parameters of the global network.
      taught: classes that the global network may teach.
    """
    first = number * self._rounds.steps
    anchor = unflat(arrays)["params"]
    state = self._driver.place_state(_begun(self._state, anchor, first))
    globally = {"params": jax.device_put(anchor)}
    rng = np.random.default_rng((self._setup.config.seed, number))
    metrics = []
    with contextlib.closing(self._setup.batches(first)) as batches:
      for step in range(first, first + self._rounds.steps):
        batch = next(batches)
        if self._rounds.teaching:
          batch = self._teach(globally, batch, taught, rng)
        state, found = self._driver.step(state, self._driver.place_batch(batch), self._steps)
        if self._rounds.proximal:
          pull = np.float32(self._rounds.proximal * float(self._schedule(step)))
          state = dataclasses.replace(state, params=_pulled(state.params, globally["params"], pull))
        metrics.append(found)
    self._state = jax.device_get(state)
    metrics = jax.device_get(metrics)
    count_K = np.sum([m["count_K"] for m in metrics], axis=0)
    values = training_scalars(metrics, self._table)
    dice = {name: min(max(values[f"dice/{name}"], 0.0), 1.0)
            for name, count in zip(self._table.names, count_K, strict=True) if count}
    return Update(flat(self._state.averaged),
                  {name: int(count) for name, count in zip(self._table.names, count_K, strict=True)
                   if count}, dice)


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns variables as path → array."""
  return {name: np.asarray(leaf)
          for name, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items()}


def unflat(arrays: Arrays) -> dict[str, Any]:
  """The inverse of `flat`."""
  return traverse_util.unflatten_dict(dict(arrays), sep="/")


def _begun(state: TrainState, params: Mapping[str, Any], step: int) -> TrainState:
  """Returns a state with other parameters at a step, also if rounds were missed."""
  def at(part):
    if isinstance(part, optax.ScaleByScheduleState):
      return optax.ScaleByScheduleState(count=jnp.int32(step))
    return part
  is_schedule = lambda part: isinstance(part, optax.ScaleByScheduleState)
  return dataclasses.replace(
      state, step=jnp.int32(step), params=jax.tree.map(jnp.asarray, dict(params)),
      opt_state=jax.tree.map(at, state.opt_state, is_leaf=is_schedule))


@jax.jit
def _pulled(params, anchor, pull):
  """FedProx (Li et al., MLSys 2020), decoupled from the gradient as weight decay in AdamW.

      θ ← θ − η μ (θ − θ_global)
  """
  return jax.tree.map(lambda p, a: p - pull * (p - a), params, anchor)
