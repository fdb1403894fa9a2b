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
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict | None
  skipped: jax.Array

  @classmethod
  def create(cls, params, optimizer: optax.GradientTransformation, *, ema: bool) -> "TrainState":
    return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
               ema=jax.tree.map(jnp.copy, params) if ema else None,
               skipped=jnp.zeros((), jnp.int32))

  @property
  def averaged(self):
    """The parameters to predict with."""
    return self.params if self.ema is None else self.ema
