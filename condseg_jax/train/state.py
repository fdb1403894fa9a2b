"""What training carries from step to step: arrays only, never functions."""

from collections.abc import Mapping

from flax import struct
import jax
import jax.numpy as jnp
import optax

from condseg_jax.errors import InputError


@struct.dataclass
class TrainState:
  """The state of a run.

  Attributes:
    step: int32, steps taken, skipped ones included; the clock of schedules and randomness.
    params: parameters, float32.
    opt_state: of the optimizer.
    ema: moving average of the parameters, or None where it is off.
    skipped: int32, steps whose loss or gradient was not finite.
    statistics: running moments of batch normalisation, or None where there is none.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict | None
  skipped: jax.Array
  statistics: dict | None = None

  @classmethod
  def create(cls, variables, optimizer: optax.GradientTransformation, *,
             ema: bool) -> "TrainState":
    """A state at step 0 of what `model.init` returns."""
    params = variables["params"]
    return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
               ema=jax.tree.map(jnp.copy, params) if ema else None,
               skipped=jnp.zeros((), jnp.int32), statistics=variables.get("statistics"))

  @property
  def averaged(self) -> dict:
    """The variables to predict with."""
    return variables(self.params if self.ema is None else self.ema, self.statistics)


def variables(params, statistics) -> dict:
  """As `model.apply` takes them."""
  return {"params": params, **({"statistics": statistics} if statistics else {})}


# --- Optimizers and schedules by name.
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "polynomial")


def make_schedule(settings: Mapping, steps: int) -> optax.Schedule:
  """Learning rate over the steps: linear warm-up, then constant, cosine or (1 - t)^0.9 decay."""
  rate, warmup = settings["learning_rate"], settings["warmup"]
  after = max(steps - warmup, 1)
  kinds = {
      "constant": lambda: optax.constant_schedule(rate),
      "cosine": lambda: optax.cosine_decay_schedule(rate, after),
      "polynomial": lambda: optax.polynomial_schedule(rate, 0.0, 0.9, after),
  }
  _known("optimizer.schedule", settings["schedule"], SCHEDULES)
  ramp = optax.linear_schedule(0.0, rate, warmup)
  decay = kinds[settings["schedule"]]()
  return optax.join_schedules([ramp, decay], [warmup]) if warmup else decay


def make_optimizer(settings: Mapping, steps: int) -> optax.GradientTransformation:
  """The update rule of a config's `optimizer` part.

  Args:
    settings: `name`, `learning_rate`, `schedule`, `warmup` (steps), `b1`, `b2`, `weight_decay`
      (adamw), `momentum` (sgd), `clip_norm` (largest global gradient norm; 0 for no limit).
    steps: length of the run, for the schedule.
  """
  schedule = make_schedule(settings, steps)
  rules = {
      "adam": lambda: optax.adam(schedule, settings["b1"], settings["b2"]),
      "adamw": lambda: optax.adamw(schedule, settings["b1"], settings["b2"],
                                   weight_decay=settings["weight_decay"]),
      "sgd": lambda: optax.sgd(schedule, settings["momentum"], nesterov=True),
  }
  _known("optimizer.name", settings["name"], OPTIMIZERS)
  rule = rules[settings["name"]]()
  limit = settings["clip_norm"]
  return optax.chain(optax.clip_by_global_norm(limit), rule) if limit else rule


def _known(subject: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise InputError(subject, f"{value!r} is not known", f"one of {', '.join(known)}", usage=True)
