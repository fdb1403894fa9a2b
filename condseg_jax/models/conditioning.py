"""Class conditioning: one function for each mechanism.

A condition has three independent parts: the vector that represents the class (`class_vector`), the
position where it enters the network (`POSITIONS`, see `dense_unet`), and the mechanism by which it
acts there. A mechanism takes the normalised features y of a layer and its `LayerContext`, and
returns features of the same shape; its parameters belong to the layer. To add a mechanism, write a
function and list it in `MECHANISMS`. The mechanisms of the head are modules, see `heads`.

A normalisation would erase a condition applied before it, so every mechanism acts between the
normalisation and the activation.
"""


from collections.abc import Callable
import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import halo
from condseg_jax.models import layers

POSITIONS = ("none", "input", "encoder", "decoder", "output_head", "per_class_decoders")
LAYERS = ("input", "encoder", "decoder")  # positions at layers of the network

# Class codes are close together; the default precision of an accelerator would round them.
EXACT = jax.lax.Precision.HIGHEST


class Condition(NamedTuple):
  """The class requested of each sample.

  Attributes:
    vector_BE: float32 class vectors, see `ClassVector`.
    class_id_B: int class ids.
  """

  vector_BE: jax.Array
  class_id_B: jax.Array


class LayerContext(NamedTuple):
  """The layer that a mechanism acts on.

  Attributes:
    vector_BE, class_id_B: see `Condition`.
    classes: number of classes K.
    kernel_size: of the layer's convolution, per spatial axis.
    channels: input channels of the layer's convolution.
    shared: skip that the layer reads, [B, *shape, S], or None.
    partition: mesh axis that the first spatial axis is split along (see `halo`), or None.
    batch_axes: mapped axes that a batch is spread over.
    module: the module that owns the parameters of the mechanism.
    dilation: of the layer's convolution.
  """

  vector_BE: jax.Array
  class_id_B: jax.Array
  classes: int
  kernel_size: tuple[int, ...]
  channels: int
  shared: jax.Array | None
  partition: str | None
  batch_axes: tuple[str, ...]
  module: nn.Module
  dilation: int = 1


def linear(name: str, x: jax.Array, features: int, scale: float = 1.0) -> jax.Array:
  """Returns W x in full float32 with a learned W.

  Args:
    name: of the parameter module.
    x: [B, E].
    features: output features.
    scale: initial standard deviation of the output for standard normal x.
  """
  init = nn.initializers.normal(scale / math.sqrt(x.shape[-1]))
  return nn.Dense(features, use_bias=False, kernel_init=init, precision=EXACT, name=name)(x)


def broadcast_spatial(a_BC: jax.Array, y: jax.Array) -> jax.Array:
  """Inserts axes of length 1 so that [B, C] broadcasts over the spatial axes of y."""
  return jnp.expand_dims(a_BC, tuple(range(1, y.ndim - 1)))


# --- mechanisms at a layer: (y float32 [B, *shape, C], context) → same shape -------------------
def channel(y: jax.Array, context: LayerContext) -> jax.Array:
  """Constant channels concatenated to the layer's input (Dmitriev & Kaufman, CVPR 2019).

      y + conv(v ⊙ O),   O all ones on the layer's grid

  Without normalisation this equals the concatenation of the paper, φ(c) = O ⊙ hash(c), up to
  rounding; with normalisation, the term is added after it.
  """
  size = context.vector_BE.shape[-1]
  fan_in = math.prod(context.kernel_size) * (context.channels + size)
  init = nn.initializers.truncated_normal(math.sqrt(2.0 / fan_in))
  kernel = context.module.param("kernel", init, (*context.kernel_size, size, y.shape[-1]),
                                jnp.float32)
  return y + constant_channels(context.vector_BE, kernel, y.shape[1:-1], context.partition,
                               context.dilation)


def film(y: jax.Array, context: LayerContext) -> jax.Array:
  """Feature-wise linear modulation (Perez et al., AAAI 2018): (1 + γ) y + β, γ = W v, β = U v."""
  gamma = linear("gamma", context.vector_BE, y.shape[-1], 0.5)
  beta = linear("beta", context.vector_BE, y.shape[-1], 0.5)
  return (1 + broadcast_spatial(gamma, y)) * y + broadcast_spatial(beta, y)


def batch_norm(y: jax.Array, context: LayerContext) -> jax.Array:
  """Conditional batch normalisation (de Vries et al., NeurIPS 2017).

      (1 + γ) (y - μ) / √(σ² + 1e-6) + β,   γ = W v, β = U v

  with μ and σ² of the batch over all devices, every class weighted equally whatever its number of
  samples. No other layer mixes the samples of a batch. In training (`statistics` mutable) running
  means of the moments are updated with momentum 0.9; otherwise the running means are used.
  """
  module, features = context.module, y.shape[-1]
  initial = lambda: jnp.zeros((2, features), jnp.float32).at[1].set(1.0)  # mean 0, square 1
  running = module.variable("statistics", "moments", initial)
  moments = running.value
  if module.is_mutable_collection("statistics"):
    space = tuple(range(1, y.ndim - 1))
    one_hot_BK = jax.nn.one_hot(context.class_id_B, context.classes, dtype=jnp.float32)
    sums = jnp.stack([y.mean(space), (y * y).mean(space)])  # [2, B, C]
    sums, counts = jnp.einsum("bk,mbc->mkc", one_hot_BK, sums), one_hot_BK.sum(0)
    if context.partition is not None:
      sums = jax.lax.pmean(sums, context.partition)
    if context.batch_axes and not module.is_initializing():
      sums, counts = jax.lax.psum((sums, counts), context.batch_axes)
    means = sums / jnp.maximum(counts, 1.0)[None, :, None]
    moments = means.sum(1) / jnp.maximum((counts > 0).sum().astype(jnp.float32), 1.0)
    if not module.is_initializing():
      running.value = 0.9 * running.value + 0.1 * jax.lax.stop_gradient(moments)
  mean, square = moments
  factor = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + 1e-6)
  y = (y - broadcast_spatial(mean[None], y)) * broadcast_spatial(factor[None], y)
  return film(y, context)


def channel_gate(y: jax.Array, context: LayerContext) -> jax.Array:
  """Squeeze and excitation (Hu et al., CVPR 2018) by the class instead of the image: 2 σ(W v) y.

  One gate per channel; a gate of 1/2 leaves y unchanged.
  """
  gate_BC = jax.nn.sigmoid(linear("gate", context.vector_BE, y.shape[-1]))
  return 2 * broadcast_spatial(gate_BC, y) * y


def spatial_gate(y: jax.Array, context: LayerContext) -> jax.Array:
  """Additive attention (Oktay et al., Attention U-Net, MIDL 2018): 2 σ(ψᵀ relu(W y + U v)) y.

  One gate per voxel, with the class as the gating signal.
  """
  hidden = convolve_1("features", y, y.shape[-1])
  gate = broadcast_spatial(linear("gate", context.vector_BE, y.shape[-1]), y)
  hidden = jax.nn.relu(hidden + gate)
  return 2 * jax.nn.sigmoid(convolve_1("psi", hidden, 1)) * y


def spade(y: jax.Array, context: LayerContext) -> jax.Array:
  """Spatial modulation by the skip (after Park et al., SPADE, CVPR 2019).

      (1 + γ_x) y_x + β_x,   γ = W (s ⊙ U v), β = W' (s ⊙ U v)

  SPADE computes γ and β from a segmentation map; here they come from the skip s, whose channels
  are weighted by the class. A spatially constant map of the class would be equivalent to FiLM.
  """
  skip = context.shared.astype(jnp.float32)
  weighted = skip * broadcast_spatial(linear("class", context.vector_BE, skip.shape[-1]), skip)
  gamma = convolve_1("gamma", weighted, y.shape[-1], 0.5)
  return (1 + gamma) * y + convolve_1("beta", weighted, y.shape[-1], 0.5)


def convolve_1(name: str, x: jax.Array, features: int, scale: float = 2 ** 0.5) -> jax.Array:
  """Returns W x at every voxel, with a learned W: a convolution of kernel size 1."""
  conv = layers.Conv(features, (1,) * (x.ndim - 2), scale=scale, name=name)
  return conv(x)


class Mechanism(NamedTuple):
  """A conditioning mechanism.

  Attributes:
    apply: the function; None for the mechanisms of the head, which are modules.
    positions: positions that it supports.
    norm: normalisation that replaces the network's before the mechanism; None keeps it.
    affine: whether that normalisation has a learned scale and bias, shared by all classes.
    needs_norm: whether the network must have a normalisation.
    concatenates: whether it represents channels concatenated to the layer's input, which then count
      towards the fan-in of the convolution.
  """

  apply: Callable[[jax.Array, LayerContext], jax.Array] | None
  positions: tuple[str, ...] = LAYERS
  norm: str | None = None
  affine: bool = True
  needs_norm: bool = False
  concatenates: bool = False


MECHANISMS = {
    "channel": Mechanism(channel, concatenates=True),
    "film": Mechanism(film),
    # Conditional normalisation (Dumoulin et al., ICLR 2017): FiLM instead of scale and bias.
    "norm": Mechanism(film, affine=False, needs_norm=True),
    "batch_norm": Mechanism(batch_norm, norm="none"),
    "channel_gate": Mechanism(channel_gate),
    "spatial_gate": Mechanism(spatial_gate),
    "spade": Mechanism(spade, positions=("decoder",)),
    "dynamic": Mechanism(None, positions=("output_head",)),
    "output": Mechanism(None, positions=("output_head",)),
}


class ConditionedLayer(nn.Module):
  """A mechanism at one layer, with its parameters.

  Attributes:
    mechanism: a name in `MECHANISMS`.
    classes, kernel_size, partition, batch_axes, dilation: see `LayerContext`.
  """

  mechanism: str
  classes: int
  kernel_size: tuple[int, ...]
  partition: str | None = None
  batch_axes: tuple[str, ...] = ()
  dilation: int = 1

  @nn.compact
  def __call__(self, y: jax.Array, condition: Condition, channels: int,
               shared: jax.Array | None) -> jax.Array:
    """Applies the mechanism in float32 and returns the dtype of y.

    Args:
      y: normalised features of the layer, [B, *shape, C].
      condition: class of each sample.
      channels: input channels of the layer's convolution.
      shared: skip that the layer reads, or None.
    """
    context = LayerContext(*condition, self.classes, self.kernel_size, channels, shared,
                           self.partition, self.batch_axes, self, self.dilation)
    return MECHANISMS[self.mechanism].apply(y.astype(jnp.float32), context).astype(y.dtype)


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
