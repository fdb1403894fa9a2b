"""How the network is told which class to find.

A condition has two parts: a vector that stands for the class (`ClassVector`) and the way it enters
the network, as constant channels of a convolution (`constant_channels`) or as the weights of the
last layers (`DynamicHead`). Vector and channels come from Dmitriev & Kaufman, CVPR 2019, where a
fixed value, the hash of the class name, is broadcast over the grid of a layer, φ(c) = O ⊙ hash(c)
with O all ones, and concatenated to the layer's input.

The summand of a constant channel is added *after* the normalisation of the layer and before its
activation: in front of an instance normalisation it would be erased. Without normalisation that is
the plain concatenation, to the bit of rounding.
"""

from collections.abc import Callable
import itertools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import halo

POSITIONS = ("none", "input", "encoder", "decoder", "head")
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


HEAD_WIDTH = 8  # hidden channels of a dynamic head, as in DoDNet


def head_layers(channels: int) -> list[tuple[int, int]]:
  """Input and output channels of the three layers of a dynamic head."""
  return list(itertools.pairwise((channels, HEAD_WIDTH, HEAD_WIDTH, 1)))


class DynamicHead(nn.Module):
  """A head whose weights the class and the image write (DoDNet, Zhang et al., CVPR 2021).

      logits = ω₃ * a(ω₂ * a(ω₁ * x)),   ω = φ([s / √|s|, v / √|v|])

  with 1×1×1 convolutions *, an activation a, the mean s of the coarsest features, the vector v of
  the class and a linear φ. All that precedes it sees no class and is shared. The biases of ω begin
  at zero.

  Attributes:
    activation: a.
  """

  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, summary: jax.Array, vector_BE: jax.Array) -> jax.Array:
    """float32 logits [B, *shape].

    Args:
      x: features at the resolution of the image, [B, *shape, C].
      summary: means over space of the coarsest features, [B, *1s, S].
      vector_BE: of the classes.
    """
    exact = jax.lax.Precision.HIGHEST  # as for constant channels: codes are close to one another
    # Image and class count alike, whatever the lengths of their vectors.
    parts = (summary.reshape(len(vector_BE), -1), vector_BE)
    context = jnp.concatenate([p / math.sqrt(p.shape[-1]) for p in parts], axis=-1)
    x = x.astype(jnp.float32)
    layers = head_layers(x.shape[-1])
    for i, (fan_in, features) in enumerate(layers):
      init = nn.initializers.truncated_normal(math.sqrt(2.0 / fan_in))
      weight = nn.Dense(fan_in * features, use_bias=False, kernel_init=init, precision=exact,
                        name=f"weight_{i}")(context)
      bias = nn.Dense(features, kernel_init=nn.initializers.zeros, precision=exact,
                      name=f"bias_{i}")(context)
      x = jnp.einsum("b...c,bco->b...o", x, weight.reshape(-1, fan_in, features))
      x = x + jnp.broadcast_to(bias.reshape(-1, *(1,) * (x.ndim - 2), features), x.shape)
      if i < len(layers) - 1:
        x = self.activation(x)
    return x[..., 0]
