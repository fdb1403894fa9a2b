"""Whether a run may resume, and what it keeps of its start: network, plan and resolved settings."""

from collections.abc import Sequence
import dataclasses

from condseg_jax.config import Config
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.plan import Plan
from condseg_jax.plan import same_spacing
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.memory import with_strides

RESUME = ("auto", "must", "never", "last_whole")


def check_resume(resume: str, last: int | None, workdir) -> None:
  """Raises InputError if `resume` does not permit the workdir's contents."""
  if resume not in RESUME:
    raise InputError("resume", f"{resume!r} is not one of {', '.join(RESUME)}", "correct it",
                     usage=True)
  if resume == "must" and last is None:
    raise InputError(workdir, "holds no checkpoint to resume from",
                     "check the workdir, or use resume=auto")
  if resume == "never" and last is not None:
    raise InputError(workdir, f"already holds a run at step {last}",
                     "choose another workdir, or use resume=auto")


def check_workdir(workdir, resume: str) -> int | None:
  """Runs `check_resume` on a workdir, creating the folder if it does not exist.

  Returns:
    The step of its last checkpoint, or None without any.
  """
  checkpoints = Checkpoints(workdir)
  try:
    check_resume(resume, checkpoints.last_step, workdir)
    return checkpoints.last_step
  finally:
    checkpoints.close()


def check_same_model(recorded: Config, config: Config, workdir) -> None:
  """Raises InputError if a resumed run would change its network; `remat` may change."""
  for part in ("model", "conditioning"):
    before, now = vars(getattr(recorded, part)), vars(getattr(config, part))
    for key in sorted(before):
      if before[key] != now[key] and key not in ("remat", "text_vectors"):
        raise InputError(workdir, f"holds a run of another model ({part}.{key} differs)",
                         "choose another workdir, or the config that it was started with")


def check_same_plan(plan: Plan, store: Store, subvolume: Sequence[int], workdir) -> None:
  """Raises InputError if the input changed; the intensity statistics stay as recorded."""
  spacing = plan.spacing if same_spacing(plan.spacing, store.spacing) else store.spacing
  now = {"modality": store.modality, "spacing": spacing, "subvolume": tuple(subvolume)}
  for name, value in now.items():
    before = getattr(plan, name)
    if before != value:
      raise InputError(workdir, f"was started with {name} {before}, now it is {value}",
                       "choose another workdir, or the data and settings it was started with")


def resumed_config(config: Config, recorded: Config) -> Config:
  """Returns the config of a resumed run, with the values resolved at its start."""
  if config.data.plan == "auto" == recorded.data.plan:
    config = dataclasses.replace(
        config, model=with_strides(config.model, recorded.model.strides),
        data=dataclasses.replace(config.data, subvolume=recorded.data.subvolume))
  if config.train.minutes and config.train.minutes == recorded.train.minutes:
    config = dataclasses.replace(config, train=dataclasses.replace(
        config.train, steps=recorded.train.steps, eval_every=recorded.train.eval_every))
  return dataclasses.replace(config, init=recorded.init, conditioning=dataclasses.replace(
      config.conditioning, texts=recorded.conditioning.texts))
