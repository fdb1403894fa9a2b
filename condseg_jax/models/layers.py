"""Layers of the network, each with one implementation for 2-D and 3-D.

Arrays are channels-last: `x_BDHWC` (no D in 2-D). The lowering of a convolution for the platform is
chosen here and nowhere else.
"""

from collections.abc import Sequence
import functools
import math

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from condseg_jax.models import halo
from condseg_jax.models.onednn import convolution as onednn

ACTIVATIONS = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.01),
    "gelu": nn.gelu,
    "silu": nn.silu,
}

NORMS = ("group", "instance", "none")


def convolve(x_BDHWC: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """Convolves with stride 1 and zero padding to the same size.

  XLA's CPU backend runs a native 3-D convolution at about a third of the speed of the same sum
  written as one 2-D convolution per depth tap, so the CPU gets the latter, or oneDNN where it is
  usable; accelerators keep the native operation. The platform is the default backend when the
  function is traced.

  Args:
    x_BDHWC: input; without D in 2-D.
    kernel: [*kernel_size, C, O], odd sizes; multiplied in the dtype of `x`.
    dilation: spacing of the kernel taps in voxels; other values than 1 bypass oneDNN.

  Returns:
    [B, D, H, W, O] in the dtype of `x`.
  """
  if dilation == 1 and onednn.usable(x_BDHWC, kernel):
    return onednn.convolve(x_BDHWC, kernel)
  kernel = kernel.astype(x_BDHWC.dtype)
  if kernel.ndim == 5 and jax.default_backend() == "cpu":
    return convolve_by_depth_tap(x_BDHWC, kernel, dilation)
  return convolve_native(x_BDHWC, kernel, dilation)


def convolve_native(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """Implements `convolve` as XLA's native convolution."""
  axes = "DHW"[5 - kernel.ndim:]
  names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  return lax.conv_general_dilated(x, kernel, (1,) * len(axes), "SAME", dimension_numbers=names,
                                  rhs_dilation=(dilation,) * len(axes))


def convolve_by_depth_tap(x_BDHWC: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """Implements `convolve` in 3-D as a sum of 2-D convolutions, one per depth tap of the kernel."""
  b, d, h, w, c = x_BDHWC.shape
  taps = kernel.shape[0]
  if taps == 1:
    flat = convolve_native(x_BDHWC.reshape(b * d, h, w, c), kernel[0], dilation)
  else:
    half = dilation * (taps // 2)
    padded = jnp.pad(x_BDHWC, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))
    slabs = (padded[:, t:t + d].reshape(b * d, h, w, c) for t in range(0, 2 * half + 1, dilation))
    flat = sum(convolve_native(slab, kernel[t], dilation) for t, slab in enumerate(slabs))
  return flat.reshape(b, d, h, w, kernel.shape[-1])


def convolve_strided(x_BDHWC: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
  """Convolves with zero padding and keeps the first of every `strides` voxels.

  On CPU the sum over depth taps is used: its forward pass is the fastest, and so is its gradient,
  or nearly, unless the depth has stride 1. oneDNN is called with stride 1 only. Forward / forward
  and gradient in ms on one core, window of 3; all but the first two by oneDNN:

      shape            32×64×64    32×64×64    8×16×16     256×256
      channels          16 → 32     16 → 32    64 → 128    32 → 64
      strides           2, 2, 2     1, 2, 2     2, 2, 2      2, 2
      depth taps        8 / 48      8 / 190    0.6 / 2.5     3 / 40  (2-D: native)
      native           47 / 2510   72 / 1774   1.4 / 170     3 / 40
      subsampled       32 / 138    37 / 118    3.5 / 26     26 / 136  (convolved with stride 1)
      im2col           73 / 133   204 / 264    0.6 / 3.2    54 / 115
      by phase         12 / 38     18 / 64     1.3 / 12     16 / 56  (one convolution per phase)

  Args:
    x_BDHWC: input; without D in 2-D. Its spatial shape must be a multiple of the strides.
    kernel: [*kernel_size, C, O], odd sizes; multiplied in the dtype of `x`.
    strides: per spatial axis.

  Returns:
    [B, D / stride, …, O] in the dtype of `x`.
  """
  kernel = kernel.astype(x_BDHWC.dtype)
  if kernel.ndim == 5 and jax.default_backend() == "cpu":
    b, d, h, w, c = x_BDHWC.shape
    half, step = kernel.shape[0] // 2, strides[0]
    padded = jnp.pad(x_BDHWC, ((0, 0), (half, half), (0, 0), (0, 0), (0, 0)))
    slabs = (padded[:, t:t + d:step].reshape(-1, h, w, c) for t in range(kernel.shape[0]))
    flat = sum(convolve_strided(slab, kernel[t], strides[1:]) for t, slab in enumerate(slabs))
    return flat.reshape(b, d // step, *flat.shape[1:])
  axes = "DHW"[5 - kernel.ndim:]
  names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  # Symmetric as for stride 1; "SAME" would pad one side only.
  padding = [(size // 2, size // 2) for size in kernel.shape[:-2]]
  return lax.conv_general_dilated(x_BDHWC, kernel, tuple(strides), padding,
                                  dimension_numbers=names)


def average_pool(x_BDHWC: jax.Array, strides: Sequence[int]) -> jax.Array:
  """Takes the mean over non-overlapping blocks of the shape `strides`.

  Args:
    x_BDHWC: input; without D in 2-D. Its spatial shape must be a multiple of the strides.
    strides: block size per spatial axis.
  """
  shape = [x_BDHWC.shape[0]]
  for size, stride in zip(x_BDHWC.shape[1:-1], strides, strict=True):
    shape += [size // stride, stride]
  within = tuple(range(2, len(shape), 2))
  return x_BDHWC.reshape(*shape, x_BDHWC.shape[-1]).mean(within)


def max_pool(x_BDHWC: jax.Array, strides: Sequence[int]) -> jax.Array:
  """Takes the maximum over non-overlapping blocks of the shape `strides`.

  Written as a selection between neighbours, axis by axis. The gradient of a windowed reduction is
  slow on CPU, and that of `max` compares the input with the maximum: if the compiler rounds the two
  differently, no element is equal and the gradient is 0/0. A selection is made once and its
  gradient follows it.

  Args:
    x_BDHWC: input; without D in 2-D. Its spatial shape must be a multiple of the strides.
    strides: block size per spatial axis.
  """
  for axis, stride in enumerate(strides, start=1):
    if stride == 1:
      continue
    blocks = x_BDHWC.shape[:axis] + (-1, stride) + x_BDHWC.shape[axis + 1:]
    first, *rest = jnp.unstack(x_BDHWC.reshape(blocks), axis=axis + 1)
    for other in rest:
      first = jnp.where(first >= other, first, other)
    x_BDHWC = first
  return x_BDHWC


class Norm(nn.Module):
  """Normalisation within a sample.

      y = (x - mean) / sqrt(var + 1e-6) · scale + bias,   var = E[x²] - E[x]²

  over the voxels and channels of a group. Groups have gcd(8, C) channels (Wu & He, "Group
  Normalization", ECCV 2018); instance normalisation has groups of one channel. Statistics are
  computed in float32.

  Moments are taken per channel, and per group only over these few numbers; then y = a x + b with
  one a and b per channel is a single pass, which the compiler fuses with the condition and the
  activation. With the groups as an axis of the volume, two more passes would be needed.

  Attributes:
    kind: `group`, `instance` or `none`.
    dtype: of the output.
    partition: mesh axis that the first spatial axis is split along (see `halo`): statistics are
      then those of the whole volume.
    affine: whether scale and bias are learned; otherwise they are 1 and 0.
  """

  kind: str
  dtype: jnp.dtype = jnp.float32
  partition: str | None = None
  affine: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.kind == "none":
      return x
    channels = x.shape[-1]
    size = 1 if self.kind == "instance" else math.gcd(8, channels)
    scale, bias = jnp.ones(channels, jnp.float32), jnp.zeros(channels, jnp.float32)
    if self.affine:
      scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
      bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

    x = x.astype(jnp.float32)
    space = tuple(range(1, x.ndim - 1))
    moments = jnp.stack([x.mean(space), (x * x).mean(space)])  # [2, B, C]
    moments = moments.reshape(*moments.shape[:2], -1, size).mean(-1)
    if self.partition is not None:
      moments = lax.pmean(moments, self.partition)
    mean, square = jnp.repeat(moments, size, axis=-1)
    factor = scale[None] * lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + 1e-6)
    offset = bias[None] - mean * factor
    # Without the barrier the compiler splits the gradient's sums over space and over the batch into
    # two passes over the volume.
    factor, offset = lax.optimization_barrier((factor, offset))
    y = x * jnp.expand_dims(factor, space) + jnp.expand_dims(offset, space)
    return y.astype(self.dtype)


class Conv(nn.Module):
  """Convolution of two inputs as if they were concatenated along the channels.

  conv([x, s]) = conv(x) + conv(s), each with its slice of the kernel. The input that all classes
  share (a skip) is passed separately: its term does not depend on the class, so a vmap over classes
  computes it once and never copies it.

  Attributes:
    features: output channels.
    kernel_size: per spatial axis.
    condition_size: channels of the class condition in the same concatenation (see
      `constant_channels`), which only count in the fan-in here.
    use_bias: whether to add a learned bias.
    dtype: computation dtype.
    partition: mesh axis that the first spatial axis is split along (see `halo`), or None.
    scale: initial root mean square of the output for an input of mean square 1.
    dilation: see `convolve`; must be 1 with a partition.
    strides: see `convolve_strided`; None for 1. With strides, dilation must be 1, and there is no
      partition.
  """

  features: int
  kernel_size: Sequence[int]
  condition_size: int = 0
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  partition: str | None = None
  scale: float = math.sqrt(2)
  dilation: int = 1
  strides: Sequence[int] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None) -> jax.Array:
    """Returns [B, *shape, features] from x [B, *shape, C] and shared [B, *shape, S].

    With strides, the shape of the output is that of x divided by them.
    """
    inputs = [x] if shared is None else [x, shared]
    channels = sum(array.shape[-1] for array in inputs)
    # He et al. 2015, with the fan-in of the whole concatenation and a truncated normal, whose
    # standard deviation is 0.88 times the value given.
    fan_in = math.prod(self.kernel_size) * (channels + self.condition_size)
    init = nn.initializers.truncated_normal(self.scale / math.sqrt(fan_in))
    kernel = self.param("kernel", init, (*self.kernel_size, channels, self.features), jnp.float32)
    plain = convolve if self.dilation == 1 else functools.partial(convolve, dilation=self.dilation)
    if self.strides is not None:
      plain = functools.partial(convolve_strided, strides=self.strides)
    first = 0
    out = 0
    for array in inputs:
      last = first + array.shape[-1]
      out = out + halo.convolve(plain, array.astype(self.dtype), kernel[..., first:last, :],
                                self.partition)
      first = last
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      out = out + jnp.broadcast_to(bias.astype(self.dtype), out.shape)
    return out


class Upsample(nn.Module):
  """Transposed convolution with kernel = stride, as a matrix product and a depth-to-space.

  With kernel equal to stride the outputs do not overlap, so this is exact, and it avoids an
  operation that is slow on every platform.

  Attributes:
    features: output channels.
    strides: upsampling factor per spatial axis.
    dtype: computation dtype.
  """

  features: int
  strides: Sequence[int]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n = len(self.strides)
    channels = x.shape[-1]
    init = nn.initializers.truncated_normal(math.sqrt(2.0 / channels))
    shape = (channels, *self.strides, self.features)
    kernel = self.param("kernel", init, shape, jnp.float32)
    b, *spatial = x.shape[:-1]
    # The matrix product, as a convolution of kernel size 1.
    y = convolve(x.astype(self.dtype), kernel.reshape(*(1,) * n, channels, -1))
    y = y.reshape(b, *spatial, *self.strides, self.features)
    order = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 1 + 2 * n]
    out = [size * stride for size, stride in zip(spatial, self.strides, strict=True)]
    return y.transpose(order).reshape(b, *out, self.features)
