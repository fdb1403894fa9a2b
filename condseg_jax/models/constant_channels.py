"""Constant channels of a convolution, without the channels."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import halo


def constant_channels(vector_BE: jax.Array, kernel: jax.Array, shape: tuple[int, ...],
                      partition: str | None = None, dilation: int = 1) -> jax.Array:
  """The zero-padded convolution of channels that are constant in space.

  conv(v ⊙ 1)(x) = Σ_t [x + t inside] Σ_e v_e k(t, e): inside, a bias per class; at the border, less
  of the window lies in the image. The indicator is a product over axes, so the sum is taken one
  axis after the other, and the channels themselves never exist. Exact, gradients included. The
  products ask for full float32: an accelerator's default would round the class codes.

  Args:
    vector_BE: the channels' values for each sample.
    kernel: [*window, E, O], the part of the kernel that meets these channels.
    shape: spatial shape of the layer; of this device's share where there is a partition.
    partition: mesh axis that the first spatial axis is split along, if it is (see `halo`).
    dilation: of the convolution.

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
    tap = dilation * (np.arange(taps, dtype=np.int32) - taps // 2)
    position = where[:, None] + tap[None, :]
    inside = jnp.asarray((position >= 0) & (position < length), jnp.float32)
    before, after = out.shape[:axis], out.shape[axis + 1:]
    out = out.reshape(math.prod(before), taps, -1)
    # As a product for each of the leading ones: a single product would have to be transposed.
    inside = jnp.broadcast_to(inside, (len(out), size, taps))
    out = jnp.matmul(inside, out, precision=exact)
    out = out.reshape(*before, size, *after)
  return out
