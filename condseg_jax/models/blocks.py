"""Blocks of the network: layers that may be told the class, densely connected."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import layers
from condseg_jax.models.conditioning import Condition
from condseg_jax.models.conditioning import Mechanic
from condseg_jax.models.conditioning import MECHANISMS


@dataclasses.dataclass(frozen=True)
class Style:
  """What all layers of a network have in common.

  Attributes:
    norm: a name in `layers.NORMS`.
    activation: a name in `layers.ACTIVATIONS`.
    dtype: of the computation.
    mechanism: a name in `conditioning.MECHANISMS`, for layers that are told the class.
    classes: number of classes.
    partition: see `halo`.
    batch_axes: mapped axes that a batch is spread over.
  """

  norm: str
  activation: str
  dtype: jnp.dtype = jnp.float32
  mechanism: str = "channel"
  classes: int = 0
  partition: str | None = None
  batch_axes: tuple[str, ...] = ()


class Layer(nn.Module):
  """Convolution, normalisation, condition, activation."""

  features: int
  window: tuple[int, ...]
  style: Style

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    style = self.style
    told = None if condition is None else MECHANISMS[style.mechanism]
    norm = style.norm if told is None or told.norm is None else told.norm
    beside = condition.vector_BE.shape[-1] if told and style.mechanism == "channel" else 0
    y = layers.Conv(self.features, self.window, beside, use_bias=norm == "none", dtype=style.dtype,
                    partition=style.partition, name="conv")(x, shared)
    y = layers.Norm(norm, style.dtype, style.partition, affine=told is None or told.affine,
                    name="norm")(y)
    if told is not None:
      channels = x.shape[-1] + (0 if shared is None else shared.shape[-1])
      y = Mechanic(style.mechanism, style.classes, self.window, style.partition, style.batch_axes,
                   name="condition")(y, condition, channels, shared)
    return layers.ACTIVATIONS[style.activation](y)


class DenseBlock(nn.Module):
  """`depth` densely connected layers of `growth` channels, joined into `features` channels."""

  depth: int
  growth: int
  features: int
  ndim: int
  style: Style

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    for i in range(self.depth):
      y = Layer(self.growth, (3,) * self.ndim, self.style, name=f"layer_{i}")(x, shared, condition)
      x = jnp.concatenate([x, y], axis=-1)
    return Layer(self.features, (1,) * self.ndim, self.style, name="join")(x, shared, condition)
