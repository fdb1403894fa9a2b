"""Halo exchange between devices that each hold a shard of one volume.

The first spatial axis (D, in 2-D H) is split into equal shards along a mesh axis, the *partition*;
these functions run inside `jax.shard_map` over it. Without a partition (None) they are the plain
operations, so the network has a single implementation.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def with_neighbours(x_BDHWC: jax.Array, width: int, partition: str) -> jax.Array:
  """Extends a shard by adjacent slices of its neighbours; by zeros at the border of the volume.

  Args:
    x_BDHWC: shard of this device; without D in 2-D.
    width: number of slices from each neighbour.
    partition: mesh axis that the first spatial axis is split along.

  Returns:
    [B, width + D + width, H, W, C]

  Raises:
    ValueError: a shard has fewer than `width` slices.
  """
  if x_BDHWC.shape[1] < width:
    raise ValueError(f"a shard of {x_BDHWC.shape[1]} slices is smaller than the halo of {width}")
  last = lax.axis_size(partition) - 1
  # `ppermute` gives zeros to devices without a sender: the zero padding at the border.
  before = lax.ppermute(x_BDHWC[:, -width:], partition, [(i, i + 1) for i in range(last)])
  after = lax.ppermute(x_BDHWC[:, :width], partition, [(i + 1, i) for i in range(last)])
  return jnp.concatenate([before, x_BDHWC, after], axis=1)


def convolve(plain: Callable, x_BDHWC: jax.Array, kernel: jax.Array,
             partition: str | None) -> jax.Array:
  """Returns this device's shard of a zero-padded convolution of the whole volume.

  Args:
    plain: (x, kernel) → convolution of the same size.
    x_BDHWC: shard of this device; without D in 2-D.
    kernel: [*kernel_size, C, O].
    partition: see `with_neighbours`.
  """
  width = kernel.shape[0] // 2
  if partition is None or width == 0:
    return plain(x_BDHWC, kernel)
  return plain(with_neighbours(x_BDHWC, width, partition), kernel)[:, width:-width]


def positions(size: int, partition: str | None) -> tuple[jax.Array | np.ndarray, int]:
  """Returns the positions of a shard's slices in the volume, int32 [size], and the volume's length.

  Args:
    size: slices of the shard.
    partition: see `with_neighbours`.
  """
  here = np.arange(size, dtype=np.int32)
  if partition is None:
    return here, size
  return here + lax.axis_index(partition) * size, size * lax.axis_size(partition)


def mean(x_BDHWC: jax.Array, partition: str | None) -> jax.Array:
  """Returns the spatial mean of the whole volume, [B, *1s, C]."""
  here = x_BDHWC.mean(tuple(range(1, x_BDHWC.ndim - 1)), keepdims=True)
  return here if partition is None else lax.pmean(here, partition)
