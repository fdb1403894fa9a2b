"""What training carries from step to step: arrays only, never functions."""

from flax import struct
import jax
import jax.numpy as jnp
import optax


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
