"""The contribution of spatially constant channels to a convolution, in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import halo


def constant_channels(vector_BE: jax.Array, kernel: jax.Array, shape: tuple[int, ...],
                      partition: str | None = None, dilation: int = 1) -> jax.Array:
  """Convolves spatially constant channels, zero-padded, without materialising them.

  conv(v ⊙ 1)(x) = Σ_t [x + t inside] Σ_e v_e k(t, e): a bias per class in the interior, less at the
  border, where part of the kernel lies outside the image. The indicator factorises over the axes,
  so the sum is taken axis by axis. Exact, gradients included. The products use full float32: the
  default precision of an accelerator would round the class codes.

  Args:
    vector_BE: values of the channels for each sample.
    kernel: [*kernel_size, E, O], the slice of the kernel for these channels.
    shape: spatial shape of the layer; with a partition, of this device's shard.
    partition: mesh axis that the first spatial axis is split along (see `halo`), or None.
    dilation: of the convolution.

  Returns:
    float32 [B, *shape, O].
  """
  exact = jax.lax.Precision.HIGHEST
  out = jnp.tensordot(vector_BE, kernel, axes=((1,), (kernel.ndim - 2,)),
                      precision=exact)  # [B, *kernel_size, O]
  # From the last axis to the first, so that no product needs a transpose.
  for axis in range(len(shape), 0, -1):
    size, taps = shape[axis - 1], kernel.shape[axis - 1]
    where, length = halo.positions(size, partition if axis == 1 else None)
    tap = dilation * (np.arange(taps, dtype=np.int32) - taps // 2)
    position = where[:, None] + tap[None, :]
    inside = jnp.asarray((position >= 0) & (position < length), jnp.float32)
    before, after = out.shape[:axis], out.shape[axis + 1:]
    out = out.reshape(math.prod(before), taps, -1)
    # Batched over the leading axes: a single product would need a transpose.
    inside = jnp.broadcast_to(inside, (len(out), size, taps))
    out = jnp.matmul(inside, out, precision=exact)
    out = out.reshape(*before, size, *after)
  return out
