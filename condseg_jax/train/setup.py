"""The plan of a run: as the config says, or fitted to the data and to a memory budget."""

from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import math

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.sampling import Dataset
from condseg_jax.data.sampling import decodes_per_image
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.conditioning import LAYERS
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.memory import training_bytes
from condseg_jax.plan import fit_subvolume
from condseg_jax.plan import Plan
from condseg_jax.plan import same_spacing

PLANS = ("config", "auto")


def make_plan(config: Mapping, training: Sequence[Dataset], table: ClassTable,
              seen: Sequence[Dataset]) -> tuple[Mapping, Plan]:
  """The plan of a new run, and its config with what the plan decided.

  Intensities are pooled over all datasets that are `seen`, whichever of them are learned: networks
  for some of their classes see images alike.

  With `data.plan` = `auto`, subvolume and strides are the largest that fit into `data.memory_gb` on
  one device, and the last entry of `model.depth` holds for all coarser levels. Spacing and
  intensities are pooled over all datasets in either case.
  """
  config = copy.deepcopy(dict(config))
  data, store = config["data"], training[0].store
  cases = [case for dataset in training for case in dataset.cases]
  if data["plan"] not in PLANS:
    raise InputError("data.plan", f"{data['plan']!r} is unknown", f"one of {', '.join(PLANS)}",
                     usage=True)
  if data["plan"] == "auto":
    shape = np.median([case.shape for case in cases], axis=0)
    data["subvolume"], strides = fit_subvolume(
        shape, store.spacing, _cost(config, training, table, store.modality),
        data["memory_gb"] * 1e9)
    config["model"] = with_strides(config["model"], strides)
  foreground = [case.intensities for dataset in seen for case in dataset.cases]
  return config, Plan.pooled(store.modality, store.spacing, data["subvolume"], foreground)


def recorded_plan(config: Mapping, recorded: Mapping) -> Mapping:
  """The config of a run that goes on: what `auto` decided when it began, it keeps,
  and so it does the texts of its classes."""
  config = copy.deepcopy(dict(config))
  if config["data"]["plan"] == "auto" == recorded["data"].get("plan"):
    config["data"]["subvolume"] = tuple(recorded["data"]["subvolume"])
    config["model"] = with_strides(config["model"], recorded["model"]["strides"])
  if "texts" in recorded["conditioning"]:
    config["conditioning"]["texts"] = recorded["conditioning"]["texts"]
  return config


def plan_record(config: Mapping, training: Sequence[Dataset], table: ClassTable,
                plan: Plan) -> dict:
  """The plan with what it rests on and what memory it takes, for JSON."""
  cases = [case for dataset in training for case in dataset.cases]
  strides, data = config["model"]["strides"], config["data"]
  cost = _cost(config, training, table, plan.modality)
  estimate, nothing = cost(plan.subvolume, strides), cost((0,) * len(plan.subvolume), strides)
  try:
    shape = np.median([case.shape for case in cases], axis=0)
    largest, _ = fit_subvolume(shape, plan.spacing, cost, data["memory_gb"] * 1e9, strides)
  except InputError:
    largest = None
  return {"plan": plan.to_json(), "strides": [list(s) for s in strides],
          "memory_gb": estimate / 1e9,
          "bytes_per_voxel": (estimate - nothing) / math.prod(plan.subvolume),
          "largest_subvolume": largest,
          "decodes_per_image": _decodes(training, data),
          "device": jax.default_backend(), **fingerprint(cases)}


def memory_lines(record: Mapping, budget_gb: float) -> list[str]:
  """What `plan_record` found of a step's memory, for people."""
  largest = record["largest_subvolume"]
  found = "none" if largest is None else "×".join(map(str, largest))
  return [f"memory of a step, estimated: {record['memory_gb']:.2f} GB on a device, "
          f"{record['bytes_per_voxel']:.0f} bytes per voxel of the subvolume, "
          f"{record['decodes_per_image']} class(es) decoded per image",
          f"largest subvolume within data.memory_gb = {budget_gb:g} GB: {found} (of images of the "
          "median shape)"]


def with_strides(model: Mapping, strides: Sequence[Sequence[int]]) -> dict:
  """Settings of a model with other strides; the depth of its last level holds for all beyond."""
  depth = list(model["depth"])
  depth = [depth[min(level, len(depth) - 1)] for level in range(len(strides) + 1)]
  return {**model, "strides": [list(s) for s in strides], "depth": depth}


def _cost(config: Mapping, training: Sequence[Dataset], table: ClassTable, modality: str):
  """(subvolume, strides) → bytes of a step on one device."""
  data = config["data"]
  decodes = _decodes(training, data)
  images = -(-data["batch_size"] // jax.device_count())

  def cost(subvolume, strides) -> int:
    model = build_model(with_strides(config["model"], strides), config["conditioning"], table.codes)
    return training_bytes(model, subvolume, 3 if modality == "rgb" else 1, images, decodes,
                          accumulate=config["train"]["accumulate"])
  return cost


def _decodes(training: Sequence[Dataset], data: Mapping) -> int:
  return decodes_per_image(training, data["classes_per_image"], data["batch_class"],
                           data["unlabelled"])


# --- Whether a run can begin, or go on, as it is asked to.
RESUME = ("auto", "must", "never")


def check_resume(resume: str, last: int | None, workdir) -> None:
  if resume not in RESUME:
    raise InputError(f"resume {resume!r}", "is not known", f"one of {', '.join(RESUME)}",
                     usage=True)
  if resume == "must" and last is None:
    raise InputError(workdir, "holds no checkpoint to resume from",
                     "check --workdir, or use --resume=auto")
  if resume == "never" and last is not None:
    raise InputError(workdir, f"already holds a run at step {last}",
                     "choose another --workdir, or use --resume=auto")


def check_same_model(recorded: ModelRecord, config: Mapping, workdir) -> None:
  """A setting younger than the run had its default; how blocks are computed may change."""
  listed = lambda value: list(value) if isinstance(value, tuple) else value  # as JSON has it
  default = {f.name: listed(f.default) for f in dataclasses.fields(DenseUNet)}.get
  for part in ("model", "conditioning"):
    before, now = recorded.config[part], config[part]
    keys = sorted(k for k in {*before, *now} - {"remat", "text_vectors"}
                  if before.get(k, default(k)) != now.get(k, default(k)))
    if keys:
      raise InputError(workdir, f"holds a run of another model ({part}.{keys[0]} differs)",
                       "choose another --workdir, or the config that it was started with")


def check_same_plan(plan: Plan, store: Store, subvolume: Sequence[int], workdir) -> None:
  """What the network sees must not change under it; the intensity statistics stay as recorded."""
  now = {"modality": store.modality, "spacing": store.spacing, "subvolume": tuple(subvolume)}
  for name, value in now.items():
    before = getattr(plan, name)
    if before != value and not (name == "spacing" and same_spacing(before, value)):
      raise InputError(workdir, f"was started with {name} {before}, now it is {value}",
                       "choose another --workdir, or the data and settings it was started with")


def check_parts(model: DenseUNet, parts: int) -> None:
  """Batch normalisation needs a batch as a whole."""
  acts = model.position in LAYERS and model.mechanism == "batch_norm"
  if acts and parts > 1:
    raise InputError("train.accumulate", f"{parts} parts of a batch, whose moments the mechanism "
                     "'batch_norm' needs as a whole", "use 1, or another mechanism", usage=True)


def check_subvolume(plan: Plan, model) -> None:
  if len(plan.subvolume) != model.ndim:
    raise InputError("model.strides", f"have {model.ndim} axes, the images {len(plan.subvolume)}",
                     "give one stride per axis of the images", usage=True)
  if any(n % s for n, s in zip(plan.subvolume, model.stride, strict=True)):
    raise InputError("data.subvolume", f"{plan.subvolume} is no multiple of the network's stride "
                     f"{model.stride}", "choose a multiple along every axis", usage=True)
