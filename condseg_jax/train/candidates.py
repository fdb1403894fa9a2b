"""Chooses network, subvolume and batch for prepared data, this machine and a number of minutes.

The candidates are few: every width of `LEAST_STEPS` with every size of `VOXELS` and every batch of
`IMAGES`. The number of levels follows from the subvolume (`plan.pooling_strides`).

The rule: of the candidates that fit into memory and get their least number of steps, take the
largest subvolume, then the widest network, then the largest batch. The least number is that of the
width in `LEAST_STEPS`, and n times it for a batch n times the smallest. Structures are recognised
by what is around them, and a larger subvolume also shows more voxels in a step, so that it comes
first. A network that stops too early is worse than a smaller one that has converged, and a wider
one needs more steps: so steps come before width, and before the size of the batch.

A few candidates are timed by real steps; the others are estimated from these.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import logging
import math
import os
import time

import jax
import numpy as np

from condseg_jax.config import Conditioning
from condseg_jax.config import Config
from condseg_jax.config import Data
from condseg_jax.config import Optimizer
from condseg_jax.config import Train
from condseg_jax.data import selection
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.models.build import build_model
from condseg_jax.models.memory import device_bytes
from condseg_jax.models.network import Network
from condseg_jax.models.network import variable_shapes
from condseg_jax.models.unet import kind_and_level
from condseg_jax.plan import channels_of
from condseg_jax.plan import fit_subvolume
from condseg_jax.train import budget
from condseg_jax.train.memory import step_bytes
from condseg_jax.train.memory import with_strides
from condseg_jax.train.setup import make_setup
from condseg_jax.train.setup import make_step_and_state

# Width → steps of the least batch below which a narrower network is the better use of the time.
# Fewer steps than those of the narrowest are not worth training at all.
LEAST_STEPS = {8: 600, 16: 2_000, 32: 6_000}
# Number of axes → sizes of the subvolume in voxels; images that are smaller are taken whole.
VOXELS = {2: (64**2, 128**2, 256**2, 512**2), 3: (32**3, 48**3, 64**3, 96**3, 128**3)}
# Number of axes → images in a step, rounded up to a multiple of the devices.
IMAGES = {2: (8, 16), 3: (2, 4)}
LEARNING_RATE = 3e-3  # between those of the configs hippocampus (5e-3) and base (2e-3)
VECTOR = "embedding"  # of a class; better than the hash in RESULTS.md
MEMORY_SHARE = 0.7  # of a device; the rest is for data, evaluation and other programs
TIMING_SHARE = 0.1  # of the minutes that timing may take, beyond the first candidate
DOUBT = 1.3  # by which an estimated step may be slower than the estimate
# The time of a voxel grows with the multiplications to this power: twice the width is 3.7 times as
# many, and takes two (bound by memory) to 3.7 times (bound by arithmetic) as long.
WIDTH_POWER = 0.75
FIRST_VOXELS = {2: 256**2, 3: 64**3}  # near the size of the first timed; small ones say little

log = logging.getLogger("condseg_jax")


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings that could be chosen.

  Attributes:
    config: all settings of the run.
    work: time of a step, in a unit that is the same for all candidates.
    least_steps: fewer are not useful.
  """

  config: Config
  work: float
  least_steps: int

  @property
  def voxels(self) -> int:
    """Voxels of the subvolume."""
    return math.prod(self.config.data.subvolume)

  @property
  def rank(self) -> tuple[int, int, int]:
    """The order of preference among candidates with enough steps, see the module's docstring."""
    return self.voxels, self.config.model.channels, self.config.data.batch_size

  def __str__(self) -> str:
    return _size(self.config)


@dataclasses.dataclass(frozen=True)
class Choice:
  """The chosen settings and what to expect of them.

  Attributes:
    config: all settings of the run.
    step: seconds of a step.
    timed: whether `step` was measured, or else estimated from other candidates.
    steps: number of steps in the minutes.
    memory_gb: estimated memory of a step on one device.
    compared: number of candidates.
  """

  config: Config
  step: float
  timed: bool
  steps: int
  memory_gb: float
  compared: int

  @property
  def description(self) -> str:
    """What to expect, in words."""
    rounded = int(float(f"{self.steps:.2g}"))
    how = "" if self.timed else " (estimated)"
    return (f"{_size(self.config)}; {self.step:.2g} s per step{how}, about {rounded:,} steps "
            f"in {self.config.train.minutes:g} minutes, {self.memory_gb:.2g} GB")


def starting_config(root: str | os.PathLike, stores: Sequence[Store], minutes: float) -> Config:
  """Returns the settings that all candidates have, which follow from the data.

  Args:
    root: folder of the stores.
    stores: prepared data of one modality and spacing.
    minutes: for the training.
  """
  training = selection.datasets(stores, "train")
  classes = dict.fromkeys(name for d in training for name in d.annotated)
  data = dataclasses.replace(
      Data(), root=str(root), spacing=tuple(stores[0].spacing), classes=tuple(classes),
      memory_gb=max(round(MEMORY_SHARE * device_bytes() / 1e9, 1), 0.1))
  return dataclasses.replace(
      Config(), data=data, conditioning=Conditioning(vector=VECTOR),
      optimizer=Optimizer(learning_rate=LEARNING_RATE), train=Train(minutes=float(minutes)))


def choose(base: Config, stores: Sequence[Store],
           seconds_of: Callable[[Config, Sequence[Store]], float] | None = None) -> Choice:
  """Chooses the settings that the rule in the module's docstring prefers.

  Args:
    base: settings that all candidates have; `train.minutes` and `data.memory_gb` are limits.
    stores: prepared data of one modality and spacing.
    seconds_of: (config, stores) → seconds of a step; `step_seconds` by default.

  Raises:
    InputError: the minutes do not suffice for the smallest candidate, or memory does not.
  """
  begun = time.monotonic()
  training = selection.datasets(stores, "train")
  seconds_of, minutes = seconds_of or step_seconds, base.train.minutes
  limit = 1e9 * base.data.memory_gb
  memory = _memory_of(training, stores)
  candidates = make_candidates(base, training)
  timed: dict[Candidate, float] = {}
  allowed, last = TIMING_SHARE * 60 * minutes, 0.0
  candidate = _first(candidates)
  while candidate not in timed:
    fits, spent = memory(candidate) <= limit, time.monotonic() - begun
    # Without time for more, an estimate has to do for a choice, but not for giving up.
    if fits and timed and spent + last > allowed and _suffices(candidate, timed, minutes):
      break
    seconds = seconds_of(candidate.config, stores) if fits else math.inf
    if math.isinf(seconds):
      candidates.remove(candidate)
      if not candidates:
        raise InputError("memory", f"{limit / 1e9:.1f} GB do not hold a step of the smallest "
                         f"network ({candidate})", "use a machine with more")
    else:
      timed[candidate] = seconds
      last = time.monotonic() - begun - spent  # most of it is compilation, of any candidate alike
      log.info("%s: %.3g s per step, %s steps in %g minutes", candidate, seconds,
               f"{_steps(seconds, minutes):,}", minutes)
    candidate = _preferred(candidates, timed, minutes) if timed else _first(candidates)
  step = _estimate(candidate, timed)
  steps, least = _steps(step, minutes), min(LEAST_STEPS.values())
  if steps < least:
    raise InputError("minutes", f"{minutes:g} leave time for {steps} steps of {step:.2g} s with "
                     f"the smallest network; fewer than {least} are not useful",
                     f"give {math.ceil(minutes * least / max(steps, 1))} or more, or a coarser "
                     "`spacing`", usage=True)
  return Choice(candidate.config, step, candidate in timed, steps, memory(candidate) / 1e9,
                len(candidates))


def make_candidates(base: Config, training: Sequence[selection.Dataset]) -> list[Candidate]:
  """Returns all candidates, whether or not they fit into memory.

  Args:
    base: settings that all of them have.
    training: the training datasets.
  """
  store = training[0].store
  shape = np.median([case.shape for d in training for case in d.cases], axis=0)
  ndim, devices = len(store.spacing), jax.device_count()
  planned: dict = {}
  for voxels in VOXELS[ndim]:
    with contextlib.suppress(InputError):  # too small for the least shape of a network
      subvolume, strides = fit_subvolume(shape, store.spacing, lambda s, _: math.prod(s), voxels)
      planned[subvolume] = strides
  batches = dict.fromkeys(-(-images // devices) * devices for images in IMAGES[ndim])
  candidates = []
  for channels in LEAST_STEPS:
    for subvolume, strides in planned.items():
      config = dataclasses.replace(base, model=with_strides(
          dataclasses.replace(base.model, channels=channels, growth=channels), strides))
      model = build_model(config.model, config.conditioning, (0.0,))
      per_voxel = multiplications(model, channels_of(store.modality))
      for images in batches:
        data = dataclasses.replace(config.data, subvolume=subvolume, batch_size=images)
        candidates.append(Candidate(dataclasses.replace(config, data=data),
                                    per_voxel**WIDTH_POWER * math.prod(subvolume) * images,
                                    LEAST_STEPS[channels] * images // min(batches)))
  return candidates


@functools.lru_cache(maxsize=64)
def multiplications(model: Network, channels: int) -> float:
  """Returns the multiplications of a forward pass per voxel of the image, for one class.

  A parameter of a level is used once for each of its voxels.

  Args:
    model: the network.
    channels: image channels.
  """
  variables = variable_shapes(model, channels)
  voxels = [1.0]  # of the levels, in units of the finest
  for level in getattr(model, "strides", ()):
    voxels.append(voxels[-1] / math.prod(level))
  total = 0.0
  for name, tree in variables["params"].items():
    _, level = kind_and_level(name) or ("", len(voxels) - 1)
    total += voxels[level] * sum(leaf.size for leaf in jax.tree.leaves(tree))
  return total


def step_seconds(config: Config, stores: Sequence[Store]) -> float:
  """Returns the seconds of a training step, measured; infinity if it does not fit into memory."""
  setup = make_setup(config, stores, None, "")
  driver, state = make_step_and_state(setup)
  with contextlib.closing(setup.batches()) as batches:
    try:
      return budget.step_seconds(driver, driver.place_state(state), batches)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      return math.inf


def _size(config: Config) -> str:
  return (f"{config.model.channels} channels, {len(config.model.strides) + 1} levels, "
          f"{config.data.batch_size} images of {'×'.join(map(str, config.data.subvolume))}")


def _memory_of(training: Sequence[selection.Dataset],
               stores: Sequence[Store]) -> Callable[[Candidate], int]:
  """Returns a function, candidate → estimated bytes of a step on one device."""
  def memory(candidate: Candidate) -> int:
    config = candidate.config
    table = selection.class_table(training, stores, config.data)
    cost = step_bytes(config, training, table, stores[0].modality)
    return cost(config.data.subvolume, config.model.strides)
  return memory


def _steps(step: float, minutes: float) -> int:
  """Returns the steps of a run, without what `budget.fit_steps` reserves for evaluations."""
  return int((1 - budget.SPARE - budget.EVALUATION_SHARE) * 60 * minutes / step)


def _suffices(candidate: Candidate, timed: Mapping[Candidate, float], minutes: float) -> bool:
  return _steps(_estimate(candidate, timed), minutes) >= candidate.least_steps


def _first(candidates: Sequence[Candidate]) -> Candidate:
  """Returns the candidate that is timed first: of the least width and batch, of a middle size."""
  first = FIRST_VOXELS[len(candidates[0].config.data.subvolume)]
  return min(candidates, key=lambda c: (*c.rank[1:], abs(math.log(c.voxels / first))))


def _preferred(candidates: Sequence[Candidate], timed: Mapping[Candidate, float],
               minutes: float) -> Candidate:
  """Returns the preferred candidate with enough steps, or the fastest if none has enough."""
  enough = [c for c in candidates if _suffices(c, timed, minutes)]
  if enough:
    return max(enough, key=lambda c: c.rank)
  return min(candidates, key=lambda c: _estimate(c, timed))


def _estimate(candidate: Candidate, timed: Mapping[Candidate, float]) -> float:
  """Returns the seconds of a step; if it was not timed, from the timed one that is most like it."""
  if candidate in timed:
    return timed[candidate]
  near = min(timed, key=lambda c: abs(math.log(candidate.work / c.work)))
  return DOUBT * timed[near] * candidate.work / near.work
