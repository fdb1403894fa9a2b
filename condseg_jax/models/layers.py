"""Layers of the network, each one implementation for 2-D and 3-D.

Arrays are channels-last: `x_BDHWC` (no D in 2-D). How a convolution is carried out on the platform
at hand is decided here and nowhere else.
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
  """Convolution with stride 1 and zero padding to the same size.

  XLA's CPU backend runs a native 3-D convolution at about a third of the speed of the same sum
  written as one 2-D convolution per depth tap, so the CPU gets the latter, or oneDNN where it is
  usable; accelerators keep the native operation. The platform is the default backend when the
  function is traced.

  Args:
    x_BDHWC: input; without D in 2-D.
    kernel: [*window, C, O], odd window sizes.
    dilation: distance between the voxels that neighbouring taps meet; without oneDNN where it is
      not 1.

  Returns:
    [B, D, H, W, O] in the dtype of `x`.
  """
  if dilation == 1 and onednn.usable(x_BDHWC, kernel):
    return onednn.convolve(x_BDHWC, kernel)
  if kernel.ndim == 5 and jax.default_backend() == "cpu":
    return convolve_by_depth_tap(x_BDHWC, kernel, dilation)
  return convolve_native(x_BDHWC, kernel, dilation)


def convolve_native(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """`convolve` as the one operation of XLA."""
  axes = "DHW"[5 - kernel.ndim:]
  names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
  return lax.conv_general_dilated(x, kernel, (1,) * len(axes), "SAME", dimension_numbers=names,
                                  rhs_dilation=(dilation,) * len(axes))


def convolve_by_depth_tap(x_BDHWC: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
  """`convolve` in 3-D as a sum of 2-D convolutions, one for each depth tap of the kernel."""
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


def max_pool(x_BDHWC: jax.Array, strides: Sequence[int]) -> jax.Array:
  """Maximum over non-overlapping blocks of the shape `strides`.

  Written as a choice between neighbours, one axis after the other. The gradient of a windowed
  reduction is slow on CPU, and that of `max` looks for the place where the input equals the
  maximum: where the compiler computes the two with different rounding there is none, and it divides
  0 by 0. A choice is made once and its gradient follows it.

  The spatial shape must be a multiple of the strides.
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
  """Normalisation that never looks beyond one sample: `group`, `instance` or `none`.

      y = (x - mean) / sqrt(var + 1e-6) · scale + bias,   var = E[x²] - E[x]²

  over the voxels and channels of a group. Groups have eight channels where that divides their
  number (Wu & He, "Group Normalization", ECCV 2018); instance normalisation is the group of one
  channel. Statistics are float32, and of the whole volume where it is split along a `partition`
  (see `halo`). Where it is not `affine`, scale is 1 and bias 0.

  Sums are taken per channel, and per group only over these few numbers; then y = a x + b with one
  a and b for each channel is a single pass, which the compiler joins to the condition and the
  activation. Written with the groups as an axis of the volume, the same takes two passes more.
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
    # Without the barrier the gradient's sums over space, and these over the batch, would become two
    # passes over the volume instead of one.
    factor, offset = lax.optimization_barrier((factor, offset))
    y = x * jnp.expand_dims(factor, space) + jnp.expand_dims(offset, space)
    return y.astype(self.dtype)


class Conv(nn.Module):
  """Convolution of several inputs as if they were concatenated along the channels.

  conv([x, s]) = conv(x) + conv(s), each with its part of the kernel. The inputs that every class
  shares (a skip) are given apart: their summand does not depend on the class, so that under a vmap
  over classes it is computed once and never copied.

  Attributes:
    features: output channels.
    window: kernel size per axis.
    condition_size: channels of the class condition that the concatenation also holds (see
      `constant_channels`); they only enter the fan-in here.
    partition: mesh axis that the first spatial axis is split along, if it is (see `halo`).
    scale: of the output at the start, for an input of squares 1.
    dilation: see `convolve`; only without a partition.
  """

  features: int
  window: Sequence[int]
  condition_size: int = 0
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  partition: str | None = None
  scale: float = math.sqrt(2)
  dilation: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, shared: jax.Array | None = None) -> jax.Array:
    parts = [x] if shared is None else [x, shared]
    channels = sum(part.shape[-1] for part in parts)
    # After He et al. 2015, with the fan-in of the whole concatenation and a truncated normal, whose
    # standard deviation is 0.88 of the value given.
    fan_in = math.prod(self.window) * (channels + self.condition_size)
    init = nn.initializers.truncated_normal(self.scale / math.sqrt(fan_in))
    kernel = self.param("kernel", init, (*self.window, channels, self.features), jnp.float32)
    kernel = kernel.astype(self.dtype)
    plain = convolve if self.dilation == 1 else functools.partial(convolve, dilation=self.dilation)
    first = 0
    out = 0
    for part in parts:
      last = first + part.shape[-1]
      out = out + halo.convolve(plain, part.astype(self.dtype), kernel[..., first:last, :],
                                self.partition)
      first = last
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
      out = out + jnp.broadcast_to(bias.astype(self.dtype), out.shape)
    return out


class Upsample(nn.Module):
  """Transposed convolution with kernel = stride, as a matrix product and a depth-to-space.

  With kernel equal to stride no two outputs overlap, so that is exactly what a transposed
  convolution does, and it avoids a slow operation on every platform.
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
    kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
    b, *spatial = x.shape[:-1]
    # The matrix product, as the convolution of one voxel that it is.
    y = convolve(x.astype(self.dtype), kernel.reshape(*(1,) * n, channels, -1))
    y = y.reshape(b, *spatial, *self.strides, self.features)
    order = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 1 + 2 * n]
    out = [size * stride for size, stride in zip(spatial, self.strides, strict=True)]
    return y.transpose(order).reshape(b, *out, self.features)
