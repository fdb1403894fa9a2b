"""What a device needs of its neighbours where one volume is split over several.

The first spatial axis (D, in 2-D H) is cut into equal shares along a mesh axis, the *partition*;
the functions here run inside `jax.shard_map` over it. Without a partition (None) they are the plain
operations, so that the network's code is one.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def with_neighbours(x_BDHWC: jax.Array, width: int, partition: str) -> jax.Array:
  """A share between the adjoining slices of its neighbours; zeros beyond the volume's border.

  Args:
    x_BDHWC: the share of this device; without D in 2-D.
    width: slices of each neighbour; a share must hold as many.
    partition: mesh axis that the first spatial axis is split along.

  Returns:
    [B, width + D + width, H, W, C]
  """
  if x_BDHWC.shape[1] < width:
    raise ValueError(f"a share of {x_BDHWC.shape[1]} slices cannot lend {width} to its neighbours")
  last = lax.axis_size(partition) - 1
  # A device that nobody sends to receives zeros: the padding at the border.
  before = lax.ppermute(x_BDHWC[:, -width:], partition, [(i, i + 1) for i in range(last)])
  after = lax.ppermute(x_BDHWC[:, :width], partition, [(i + 1, i) for i in range(last)])
  return jnp.concatenate([before, x_BDHWC, after], axis=1)


def convolve(plain: Callable, x_BDHWC: jax.Array, kernel: jax.Array,
             partition: str | None) -> jax.Array:
  """A zero-padded convolution of the whole volume, for this device's share.

  Args:
    plain: (x, kernel) → convolution of the same size.
    x_BDHWC, kernel: its arguments.
    partition: see `with_neighbours`.
  """
  width = kernel.shape[0] // 2
  if partition is None or width == 0:
    return plain(x_BDHWC, kernel)
  return plain(with_neighbours(x_BDHWC, width, partition), kernel)[:, width:-width]


def positions(size: int, partition: str | None) -> tuple[jax.Array | np.ndarray, int]:
  """Where a share of `size` slices lies: int32 [size], and the length of the whole volume."""
  here = np.arange(size, dtype=np.int32)
  if partition is None:
    return here, size
  return here + lax.axis_index(partition) * size, size * lax.axis_size(partition)


def mean(x_BDHWC: jax.Array, partition: str | None) -> jax.Array:
  """Mean over the space of the whole volume, [B, *1s, C]."""
  here = x_BDHWC.mean(tuple(range(1, x_BDHWC.ndim - 1)), keepdims=True)
  return here if partition is None else lax.pmean(here, partition)
