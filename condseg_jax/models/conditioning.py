"""How the network is told which class to find.

A condition has two parts: a vector that stands for the class (`ClassVector`) and the way it enters
a convolution (`constant_channels`). Both come from Dmitriev & Kaufman, CVPR 2019, where a fixed
value, the hash of the class name, is broadcast over the grid of a layer, φ(c) = O ⊙ hash(c) with O
all ones, and concatenated to the layer's input.

The summand of a constant channel is added *after* the normalisation of the layer and before its
activation: in front of an instance normalisation it would be erased. Without normalisation that is
the plain concatenation, to the bit of rounding.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import halo

POSITIONS = ("none", "input", "encoder", "decoder")
MECHANISMS = ("hash", "embedding")


class ClassVector(nn.Module):
  """Class ids to the vectors that stand for the classes.

  Attributes:
    mechanism: `hash`, the fixed code of the class table as a vector of one; `embedding`, a learned
      vector per class in its place.
    codes: the class codes in the order of the ids, each in [-1, 1].
    size: length of a learned vector.
  """

  mechanism: str
  codes: tuple[float, ...]
  size: int

  @nn.compact
  def __call__(self, class_id_B: jax.Array) -> jax.Array:
    """int [B] → float32 [B, E]: codes differ by as little as 1/128, which bfloat16 would blur."""
    if self.mechanism == "hash":
      return jnp.asarray(self.codes, jnp.float32)[class_id_B][:, None]
    table = self.param("embedding", nn.initializers.normal(1.0), (len(self.codes), self.size),
                       jnp.float32)
    return table[class_id_B]


class ConstantChannels(nn.Module):
  """What constant channels add to a zero-padded convolution, without making the channels.

  Attributes:
    features: output channels of the convolution.
    window: its kernel size per axis.
    fan_in_channels: channels of the features that the condition is concatenated to.
    partition: mesh axis that the first spatial axis is split along, if it is (see `halo`).
  """

  features: int
  window: tuple[int, ...]
  fan_in_channels: int
  partition: str | None = None

  @nn.compact
  def __call__(self, vector_BE: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The summand for a layer of the spatial `shape`: float32 [B, *shape, features]."""
    size = vector_BE.shape[-1]
    fan_in = math.prod(self.window) * (self.fan_in_channels + size)
    init = nn.initializers.truncated_normal(math.sqrt(2.0 / fan_in))
    kernel = self.param("kernel", init, (*self.window, size, self.features), jnp.float32)
    return constant_channels(vector_BE, kernel, shape, self.partition)


def constant_channels(vector_BE: jax.Array, kernel: jax.Array, shape: tuple[int, ...],
                      partition: str | None = None) -> jax.Array:
  """The zero-padded convolution of channels that are constant in space.

  conv(v ⊙ 1)(x) = Σ_t [x + t inside] Σ_e v_e k(t, e): inside, a bias per class; at the border, less
  of the window lies in the image. The indicator is a product over axes, so the sum is taken one
  axis after the other, and the channels themselves never exist. Exact, gradients included. The
  products ask for full float32: an accelerator's default would round the class codes.

  Args:
    vector_BE: the channels' values for each sample.
    kernel: [*window, E, O], the part of the kernel that meets these channels.
    shape: spatial shape of the layer; of this device's share where there is a partition.
    partition: see `ConstantChannels`.

  Returns:
    float32 [B, *shape, O].
  """
  exact = jax.lax.Precision.HIGHEST
  out = jnp.tensordot(vector_BE, kernel, axes=((1,), (kernel.ndim - 2,)),
                      precision=exact)  # [B, *window, O]
  # The last axis first: the products with the most rows then leave every axis where it belongs.
  for axis in range(len(shape), 0, -1):
    size, taps = shape[axis - 1], kernel.shape[axis - 1]
    where, length = halo.positions(size, partition if axis == 1 else None)
    position = where[:, None] + np.arange(taps, dtype=np.int32)[None, :] - taps // 2
    inside = jnp.asarray((position >= 0) & (position < length), jnp.float32)
    before, after = out.shape[:axis], out.shape[axis + 1:]
    out = out.reshape(math.prod(before), taps, -1)
    # As a product for each of the leading ones: a single product would have to be transposed.
    inside = jnp.broadcast_to(inside, (len(out), size, taps))
    out = jnp.matmul(inside, out, precision=exact)
    out = out.reshape(*before, size, *after)
  return out
