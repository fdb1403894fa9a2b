"""The train state (arrays, never functions), and the optimizer that updates it."""

from flax import struct
import jax
import jax.numpy as jnp
import optax

from condseg_jax.config import Optimizer


@struct.dataclass
class TrainState:
  """The state of a run.

  Attributes:
    step: int32, number of steps including skipped ones; drives schedules and random keys.
    params: parameters, float32.
    opt_state: state of the optimizer.
    ema: exponential moving average of the parameters, or None if disabled.
    skipped: int32, number of steps whose loss or gradient was not finite.
    statistics: running moments of batch normalisation, or None without it.
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
    """Creates a state at step 0 from the variables that `model.init` returns."""
    params = variables["params"]
    return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
               ema=jax.tree.map(jnp.copy, params) if ema else None,
               skipped=jnp.zeros((), jnp.int32), statistics=variables.get("statistics"))

  @property
  def averaged(self) -> dict:
    """Returns the variables for prediction."""
    return variables(self.params if self.ema is None else self.ema, self.statistics)


def variables(params, statistics) -> dict:
  """Returns the variables in the form that `model.apply` takes."""
  return {"params": params, **({"statistics": statistics} if statistics else {})}


def make_schedule(settings: Optimizer, steps: int) -> optax.Schedule:
  """Returns a schedule: linear warm-up, then constant, cosine or (1 - t)^0.9 decay.

  With r the rate, w the warm-up steps, n the steps of the run and t = (step - w) / (n - w):
  r · step / w before w; then r, r (1 + cos πt) / 2 or r (1 - t)^0.9.
  """
  rate, warmup = settings.learning_rate, settings.warmup
  after = max(steps - warmup, 1)
  if settings.schedule == "constant":
    decay = optax.constant_schedule(rate)
  elif settings.schedule == "cosine":
    decay = optax.cosine_decay_schedule(rate, after)
  else:
    decay = optax.polynomial_schedule(rate, 0.0, 0.9, after)
  ramp = optax.linear_schedule(0.0, rate, warmup)
  return optax.join_schedules([ramp, decay], [warmup]) if warmup else decay


def make_optimizer(settings: Optimizer, steps: int) -> optax.GradientTransformation:
  """Returns the optimizer of a config.

  Args:
    settings: the `optimizer` section.
    steps: length of the run, for the schedule.
  """
  schedule = make_schedule(settings, steps)
  if settings.name == "adam":
    rule = optax.adam(schedule, settings.b1, settings.b2)
  elif settings.name == "adamw":
    rule = optax.adamw(schedule, settings.b1, settings.b2, weight_decay=settings.weight_decay)
  else:
    rule = optax.sgd(schedule, settings.momentum, nesterov=True)
  limit = settings.clip_norm
  return optax.chain(optax.clip_by_global_norm(limit), rule) if limit else rule
