"""Blocks of the network: conditioned layers with dense, residual or plain connections."""

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
  """Settings shared by all layers of a network.

  Attributes:
    norm: a name in `layers.NORMS`.
    activation: a name in `layers.ACTIVATIONS`.
    dtype: computation dtype.
    mechanism: a name in `conditioning.MECHANISMS`, used by conditioned layers.
    classes: number of classes K.
    partition: mesh axis that the first spatial axis is split along (see `halo`), or None.
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
    kernel_size: of the convolution, per spatial axis.
    style: settings of the network.
    reads_shared: whether the convolution reads the skip; the condition always may.
    activates: whether to apply the activation.
    dilation: of the convolution.
    strides: of the convolution; None for 1. Not for conditioned layers.
  """

  features: int
  kernel_size: tuple[int, ...]
  style: BlockConfig
  reads_shared: bool = True
  activates: bool = True
  dilation: int = 1
  strides: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    """Returns [B, *shape, features].

    Args:
      x: input, [B, *shape, C].
      shared: skip, [B, *shape, S], the same for all classes.
      condition: class of each sample; None for an unconditioned layer.
    """
    style = self.style
    mechanism = None if condition is None else MECHANISMS[style.mechanism]
    norm = style.norm if mechanism is None else mechanism.norm or style.norm
    condition_size = condition.vector_BE.shape[-1] if mechanism and mechanism.concatenates else 0
    skip = shared if self.reads_shared else None
    y = layers.Conv(self.features, self.kernel_size, condition_size, use_bias=norm == "none",
                    dtype=style.dtype, partition=style.partition, dilation=self.dilation,
                    strides=self.strides, name="conv")(x, skip)
    y = layers.Norm(norm, style.dtype, style.partition,
                    affine=mechanism is None or mechanism.affine, name="norm")(y)
    if mechanism is not None:
      channels = x.shape[-1] + (0 if skip is None else skip.shape[-1])
      y = ConditionedLayer(style.mechanism, style.classes, self.kernel_size, style.partition,
                           style.batch_axes, self.dilation,
                           name="condition")(y, condition, channels, shared)
    return layers.ACTIVATIONS[style.activation](y) if self.activates else y


class Block(nn.Module):
  """(x [B, *shape, C], skip or None, condition or None) → [B, *shape, features].

  Attributes:
    depth: number of layers.
    growth: channels of each layer of a dense block; unused by the other blocks.
    features: output channels.
    ndim: 2 or 3.
    style: settings of the network.
    dilation: of the convolutions.
  """

  depth: int
  growth: int
  features: int
  ndim: int
  style: BlockConfig
  dilation: int = 1


class DenseBlock(Block):
  """Every layer reads the input and all earlier layers (Huang et al., CVPR 2017).

  A final layer of kernel size 1 joins the `depth` layers of `growth` channels into `features`.
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
  """Residual units of two layers (He et al., CVPR 2016).

      y = a(F(x) + W x)

  F ends with normalisation and condition. W is the identity if the input has as many channels as
  the output, else a normalised projection (their option B), which reads the skip and is never
  conditioned. With an odd `depth` the last unit has one layer.
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
  """`depth` layers in sequence (Simonyan & Zisserman, ICLR 2015; U-Net, Ronneberger et al., 2015).

  Only the first layer reads the skip.
  """

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None,
               condition: Condition | None = None) -> jax.Array:
    for i in range(self.depth):
      x = Layer(self.features, (3,) * self.ndim, self.style, reads_shared=i == 0,
                dilation=self.dilation, name=f"layer_{i}")(x, shared, condition)
    return x


BLOCKS = {"dense": DenseBlock, "residual": ResidualBlock, "plain": PlainBlock}
