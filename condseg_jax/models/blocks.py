"""Blocks of the network: layers that may be told the class, connected in one of three ways."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import layers
from condseg_jax.models.conditioning import Condition
from condseg_jax.models.conditioning import ConditionedLayer
from condseg_jax.models.conditioning import MECHANISMS


@dataclasses.dataclass(frozen=True)
class BlockConfig:
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
  """Convolution, normalisation, condition, activation.

  Attributes:
    features: output channels.
    window: of the convolution.
    style: of the network.
    reads_shared: whether the convolution reads the skip; the condition may in any case.
    activates: whether the activation is done here.
    dilation: of the convolution.
  """

  features: int
  window: tuple[int, ...]
  style: BlockConfig
  reads_shared: bool = True
  activates: bool = True
  dilation: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    style = self.style
    told = None if condition is None else MECHANISMS[style.mechanism]
    norm = style.norm if told is None or told.norm is None else told.norm
    beside = condition.vector_BE.shape[-1] if told and style.mechanism == "channel" else 0
    skip = shared if self.reads_shared else None
    y = layers.Conv(self.features, self.window, beside, use_bias=norm == "none", dtype=style.dtype,
                    partition=style.partition, dilation=self.dilation, name="conv")(x, skip)
    y = layers.Norm(norm, style.dtype, style.partition, affine=told is None or told.affine,
                    name="norm")(y)
    if told is not None:
      channels = x.shape[-1] + (0 if skip is None else skip.shape[-1])
      y = ConditionedLayer(style.mechanism, style.classes, self.window, style.partition,
                           style.batch_axes, self.dilation,
                           name="condition")(y, condition, channels, shared)
    return layers.ACTIVATIONS[style.activation](y) if self.activates else y


class Block(nn.Module):
  """(x [B, *shape, C], skip or None, condition or None) → [B, *shape, features].

  Attributes:
    depth: number of layers.
    growth: channels of a layer of a dense block; the others have no use for it.
    features: output channels.
    ndim: 2 or 3.
    style: of the network.
    dilation: of the convolutions.
  """

  depth: int
  growth: int
  features: int
  ndim: int
  style: BlockConfig
  dilation: int = 1


class DenseBlock(Block):
  """Every layer sees the input and all earlier layers (Huang et al., CVPR 2017).

  `depth` layers of `growth` channels are joined into `features` by one of a window of 1.
  """

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    for i in range(self.depth):
      y = Layer(self.growth, (3,) * self.ndim, self.style, dilation=self.dilation,
                name=f"layer_{i}")(x, shared, condition)
      x = jnp.concatenate([x, y], axis=-1)
    return Layer(self.features, (1,) * self.ndim, self.style, name="join")(x, shared, condition)


class ResidualBlock(Block):
  """Units of two layers whose sum with their input is activated (He et al., CVPR 2016).

      y = a(F(x) + W x)

  F ends with normalisation and condition. Where the input has as many channels as the output, W is
  the identity, else a projection, normalised (their option B); it reads the skip and no class. Of
  an odd `depth` the last unit has one layer.
  """

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    for first in range(0, self.depth, 2):
      y, last = x, min(first + 2, self.depth) - 1
      for i in range(first, last + 1):
        y = Layer(self.features, (3,) * self.ndim, self.style, reads_shared=i == 0,
                  activates=i < last, dilation=self.dilation,
                  name=f"layer_{i}")(y, shared, condition)
      if x.shape[-1] != self.features or (first == 0 and shared is not None):
        x = Layer(self.features, (1,) * self.ndim, self.style, activates=False,
                  name="projection")(x, shared)
      x = layers.ACTIVATIONS[self.style.activation](x + y)
    return x


class PlainBlock(Block):
  """`depth` layers in a row (Simonyan & Zisserman, ICLR 2015; U-Net, Ronneberger et al., 2015).

  The first of them reads the skip.
  """

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    for i in range(self.depth):
      x = Layer(self.features, (3,) * self.ndim, self.style, reads_shared=i == 0,
                dilation=self.dilation, name=f"layer_{i}")(x, shared, condition)
    return x


BLOCKS = {"dense": DenseBlock, "residual": ResidualBlock, "plain": PlainBlock}
