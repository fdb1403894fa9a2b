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


def make_schedule(settings: Optimizer, steps: int | jax.Array) -> optax.Schedule:
  """Returns a schedule: linear warm-up, then constant, cosine or (1 - t)^0.9 decay.

  With r the rate, w the warm-up steps, n the steps of the run and t = (step - w) / (n - w):
  r · step / w before w; then r, r (1 + cos πt) / 2 or r (1 - t)^0.9.

  Args:
    settings: the `optimizer` section.
    steps: length of the run; may be traced.
  """
  rate, warmup = settings.learning_rate, settings.warmup

  def schedule(step) -> jax.Array:
    step, last = jnp.asarray(step, jnp.float32), jnp.asarray(steps, jnp.float32)
    t = jnp.clip((step - warmup) / jnp.maximum(last - warmup, 1.0), 0.0, 1.0)
    decay = {"constant": jnp.ones_like(t), "cosine": (1.0 + jnp.cos(jnp.pi * t)) / 2.0,
             "polynomial": (1.0 - t) ** 0.9}[settings.schedule]
    return rate * jnp.where(step < warmup, step / max(warmup, 1), decay)
  return schedule


def scheduled(settings: Optimizer) -> optax.GradientTransformationExtraArgs:
  """Scales an update by minus the rate of `make_schedule`.

  The length of the run is the argument `steps` of `update`, so that it can be decided after a step
  was compiled and timed.
  """
  def init(_) -> optax.ScaleByScheduleState:
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, _params=None, *, steps, **_):
    rate = make_schedule(settings, steps)(state.count)
    updates = jax.tree.map(lambda u: -rate * u, updates)
    return updates, optax.ScaleByScheduleState(count=state.count + jnp.int32(1))
  return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(settings: Optimizer) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer of a config; its `update` takes the length of the run as `steps`."""
  if settings.name == "sgd":
    rule = [optax.trace(settings.momentum, nesterov=True)]
  else:
    rule = [optax.scale_by_adam(settings.b1, settings.b2)]
    if settings.name == "adamw":
      rule.append(optax.add_decayed_weights(settings.weight_decay))
  # Nested as in optax.adam, so that the states of former checkpoints fit.
  descent = optax.chain(*rule, scheduled(settings))
  limit = settings.clip_norm
  return optax.chain(optax.clip_by_global_norm(limit), descent) if limit else descent
