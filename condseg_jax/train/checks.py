"""Whether a run can begin, or go on, as it is asked to."""

from collections.abc import Mapping, Sequence
import dataclasses

from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.models.conditioning import LAYERS
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.plan import same_spacing
from condseg_jax.train.checkpoint import ModelRecord

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
