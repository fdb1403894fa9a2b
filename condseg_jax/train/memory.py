"""The memory of a training step: estimated, described, and compared with that of a device."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.config import Model
from condseg_jax.data import sampling
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.selection import Dataset
from condseg_jax.errors import InputError
from condseg_jax.losses import RIVALS
from condseg_jax.models.build import build_model
from condseg_jax.models.memory import device_bytes
from condseg_jax.models.memory import OVERESTIMATE
from condseg_jax.models.memory import training_bytes
from condseg_jax.plan import channels_of
from condseg_jax.plan import fit_subvolume
from condseg_jax.plan import Plan


def with_strides(model: Model, strides: Sequence[Sequence[int]]) -> Model:
  """Returns a model with other strides; coarser levels repeat the layers of its last level."""
  layers = model.layers_per_level
  return dataclasses.replace(
      model, strides=tuple(tuple(s) for s in strides),
      layers_per_level=tuple(layers[min(level, len(layers) - 1)]
                             for level in range(len(strides) + 1)))


def excludes(config: Config) -> bool:
  """Returns whether training relies on classes that exclude each other, see `train.unlabelled`."""
  loss = config.loss
  return bool(loss.objective in RIVALS or config.augment.cutmix or loss.further)


def decodes_per_step(config: Config, training: Sequence[Dataset], table: ClassTable) -> int:
  """Returns D, the classes that a step decodes per image: those of the batch and further ones."""
  if config.loss.objective in RIVALS:
    return len(table)
  own = sampling.decodes_per_image(training, table, config.data)
  return min(len(table), own + config.loss.further)


def step_bytes(config: Config, training: Sequence[Dataset], table: ClassTable,
               modality: str) -> Callable[[Sequence[int], Sequence[Sequence[int]]], int]:
  """Returns a function (subvolume, strides) → estimated bytes of a step on one device."""
  decodes, partition = decodes_per_step(config, training, table), max(1, config.train.partition)
  images = -(-config.data.batch_size * partition // jax.device_count())

  def cost(subvolume, strides) -> int:
    model = build_model(with_strides(config.model, strides), config.conditioning, table.codes)
    of = lambda shape: training_bytes(model, shape, channels_of(modality), images, decodes,
                                      accumulate=config.train.grad_accum_steps)
    if partition == 1:
      return of(subvolume)
    parameters = of((0,) * len(subvolume))
    return parameters + (of(subvolume) - parameters) // partition
  return cost


def fitted_partition(config: Config, training: Sequence[Dataset], table: ClassTable, plan: Plan,
                     possible: Sequence[int]) -> int:
  """Returns the fewest of some ascending numbers of devices to split a subvolume over with which a
  step fits into memory, or else the most."""
  for n in possible:
    tried = dataclasses.replace(config, train=dataclasses.replace(config.train, partition=n))
    cost = step_bytes(tried, training, table, plan.modality)
    if cost(plan.subvolume, config.model.strides) <= 1e9 * config.data.memory_gb:
      return n
  return possible[-1]


def plan_summary(config: Config, training: Sequence[Dataset], table: ClassTable,
                plan: Plan) -> dict:
  """Returns the plan, the data it was derived from and its memory use, for plan.json."""
  cases = [case for dataset in training for case in dataset.cases]
  strides = config.model.strides
  cost = step_bytes(config, training, table, plan.modality)
  estimate, nothing = cost(plan.subvolume, strides), cost((0,) * len(plan.subvolume), strides)
  try:
    shape = np.median([case.shape for case in cases], axis=0)
    largest, _ = fit_subvolume(shape, plan.spacing, cost, config.data.memory_gb * 1e9, strides)
  except InputError:
    largest = None
  return {"plan": plan.to_json(), "strides": [list(s) for s in strides],
          "memory_gb": estimate / 1e9,
          "bytes_per_voxel": (estimate - nothing) / math.prod(plan.subvolume),
          "largest_subvolume": largest,
          "decodes_per_image": decodes_per_step(config, training, table),
          "partition": config.train.partition,
          "device": jax.default_backend(), **fingerprint(cases)}


def memory_lines(summary: Mapping, budget_gb: float) -> list[str]:
  """Formats the memory of a step in `plan_summary` for the log."""
  largest = summary["largest_subvolume"]
  shape = "none" if largest is None else "×".join(map(str, largest))
  split = summary["partition"]
  over = f", each subvolume split over {split} devices" if split > 1 else ""
  return [f"memory of a step, estimated: {summary['memory_gb']:.2f} GB on a device{over}, "
          f"{summary['bytes_per_voxel']:.0f} bytes per voxel of the subvolume, "
          f"{summary['decodes_per_image']} class(es) decoded per image",
          f"largest subvolume within data.memory_gb = {budget_gb:g} GB: {shape} (for images of the "
          "median shape)"]


def check_memory(summary: Mapping, batch_size: int, memory_bytes: int | None = None) -> None:
  """Raises InputError for a step that cannot fit into memory, before it is compiled.

  Args:
    summary: from `plan_summary`.
    batch_size: images per step.
    memory_bytes: memory of a device; None for that of this machine.
  """
  available = (device_bytes() if memory_bytes is None else memory_bytes) / 1e9
  least = summary["memory_gb"] / OVERESTIMATE
  if least <= available:
    return
  fitting = int(batch_size * available / summary["memory_gb"])
  largest = summary["largest_subvolume"]
  cures = ([f"set data.batch_size to {fitting}"] if fitting else []) + (
      [f"set data.subvolume to {tuple(largest)}"] if largest else [])
  raise InputError("data.batch_size, data.subvolume", f"a step needs {least:.1f} GB or more, a "
                   f"device has {available:.1f} GB",
                   " or ".join(cures) or "choose a smaller subvolume or network", usage=True)
