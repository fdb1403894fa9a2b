"""Heads that produce the logits of a class; everything before them is shared by all classes."""

from collections.abc import Callable
import itertools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models.conditioning import EXACT

HEAD_WIDTH = 8  # hidden channels of a dynamic head, as in DoDNet


def head_layers(channels: int) -> list[tuple[int, int]]:
  """Returns (input, output) channels of the three layers of a dynamic head.

  Args:
    channels: of the features that the head reads.
  """
  return list(itertools.pairwise((channels, HEAD_WIDTH, HEAD_WIDTH, 1)))


class DynamicHead(nn.Module):
  """A head with weights generated from class and image (DoDNet, Zhang et al., CVPR 2021).

      logits = ω₃ * a(ω₂ * a(ω₁ * x)),   ω = φ([s / √|s|, v / √|v|])

  with 1×1×1 convolutions *, an activation a, the mean s of the coarsest features, the class vector
  v and a linear φ. Everything before the head is unconditioned and shared by all classes. The
  biases of ω are initialised to zero.

  Attributes:
    activation: a.
  """

  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, pooled: jax.Array, vector_BE: jax.Array) -> jax.Array:
    """Returns float32 logits [B, *shape].

    Args:
      x: features at the resolution of the image, [B, *shape, C].
      pooled: spatial means of the coarsest features, [B, *1s, S].
      vector_BE: class vectors.
    """
    # Image and class have the same weight, whatever the lengths of their vectors.
    inputs = (pooled.reshape(len(vector_BE), -1), vector_BE)
    context = jnp.concatenate([v / math.sqrt(v.shape[-1]) for v in inputs], axis=-1)
    x = x.astype(jnp.float32)
    channels = head_layers(x.shape[-1])
    for i, (fan_in, features) in enumerate(channels):
      init = nn.initializers.truncated_normal(math.sqrt(2.0 / fan_in))
      weight = nn.Dense(fan_in * features, use_bias=False, kernel_init=init, precision=EXACT,
                        name=f"weight_{i}")(context)
      bias = nn.Dense(features, kernel_init=nn.initializers.zeros, precision=EXACT,
                      name=f"bias_{i}")(context)
      x = jnp.einsum("b...c,bco->b...o", x, weight.reshape(-1, fan_in, features))
      x = x + jnp.broadcast_to(bias.reshape(-1, *(1,) * (x.ndim - 2), features), x.shape)
      if i < len(channels) - 1:
        x = self.activation(x)
    return x[..., 0]


class OutputChannels(nn.Module):
  """One output channel per class, unconditioned (Ulrich et al., MultiTalent, MICCAI 2023).

      logits_c = w_c · x + b_c

  Attributes:
    classes: number of classes K.
  """

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array, class_id_B: jax.Array) -> jax.Array:
    """Returns float32 logits [B, *shape]: of each sample, the channel of its class.

    Args:
      x: [B, *shape, C].
      class_id_B: int class ids.
    """
    init = nn.initializers.truncated_normal(math.sqrt(2.0 / x.shape[-1]))
    kernel = self.param("kernel", init, (self.classes, x.shape[-1]), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.classes,), jnp.float32)
    logits = jnp.einsum("b...c,bc->b...", x.astype(jnp.float32), kernel[class_id_B])
    return logits + jnp.broadcast_to(bias[class_id_B].reshape(-1, *(1,) * (x.ndim - 2)),
                                     logits.shape)
