"""How the network is told which class to find: one function for each mechanism.

A condition has three parts, chosen apart: the vector that stands for the class (`class_vector`),
the position where it enters (`POSITIONS`, see `dense_unet`), and the mechanism by which it acts
there. A mechanism takes the normalised features y of a layer and its `LayerContext`, and returns
features of the same shape; its parameters lie beside those of the layer. To add one, write a
function and name it in `MECHANISMS`.

What acts before a normalisation would be erased by it: every mechanism acts after it, and before
the activation.
"""

from collections.abc import Callable
import itertools
import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import layers
from condseg_jax.models.constant_channels import constant_channels

POSITIONS = ("none", "input", "encoder", "decoder", "head", "decoders")
LAYERS = ("input", "encoder", "decoder")  # positions at layers of the network

# Class codes lie close to one another, and an accelerator's default would round them.
EXACT = jax.lax.Precision.HIGHEST


class Condition(NamedTuple):
  """The class that is asked of each sample.

  Attributes:
    vector_BE: float32, of `ClassVector`.
    class_id_B: int.
  """

  vector_BE: jax.Array
  class_id_B: jax.Array


class LayerContext(NamedTuple):
  """What a mechanism knows of its layer.

  Attributes:
    vector_BE, class_id_B: of the classes, see `Condition`.
    classes: their number K.
    window: of the layer's convolution.
    channels: that it reads.
    shared: the skip it reads, [B, *shape, S]; None where there is none.
    partition: mesh axis that the first spatial axis is split along, if it is (see `halo`).
    batch_axes: names of the mapped axes that a batch is spread over.
    module: whose parameters the mechanism's are; `linear` makes them too.
    dilation: of the layer's convolution.
  """

  vector_BE: jax.Array
  class_id_B: jax.Array
  classes: int
  window: tuple[int, ...]
  channels: int
  shared: jax.Array | None
  partition: str | None
  batch_axes: tuple[str, ...]
  module: nn.Module
  dilation: int = 1


def linear(name: str, x: jax.Array, features: int, scale: float = 1.0) -> jax.Array:
  """W x in full float32, with a learned W of that name: for standard normal x, of that scale."""
  init = nn.initializers.normal(scale / math.sqrt(x.shape[-1]))
  return nn.Dense(features, use_bias=False, kernel_init=init, precision=EXACT, name=name)(x)


def broadcast_spatial(a_BC: jax.Array, y: jax.Array) -> jax.Array:
  """One number for each sample and channel, to be broadcast over the space of y."""
  return jnp.expand_dims(a_BC, tuple(range(1, y.ndim - 1)))


# --- at a layer: (y float32 [B, *shape, C], site) → the same shape ---------------------------
def channel(y: jax.Array, site: LayerContext) -> jax.Array:
  """Constant channels beside the layer's input (Dmitriev & Kaufman, CVPR 2019).

      y + conv(v ⊙ O),   O all ones on the layer's grid

  Without normalisation that is the concatenation of the paper, φ(c) = O ⊙ hash(c), to the bit of
  rounding; with one, the summand comes after it.
  """
  size = site.vector_BE.shape[-1]
  fan_in = math.prod(site.window) * (site.channels + size)
  kernel = site.module.param("kernel", nn.initializers.truncated_normal(math.sqrt(2.0 / fan_in)),
                             (*site.window, size, y.shape[-1]), jnp.float32)
  return y + constant_channels(site.vector_BE, kernel, y.shape[1:-1], site.partition,
                               site.dilation)


def film(y: jax.Array, site: LayerContext) -> jax.Array:
  """Feature-wise linear modulation (Perez et al., AAAI 2018): (1 + γ) y + β, γ = W v, β = U v."""
  gamma = linear("gamma", site.vector_BE, y.shape[-1], 0.5)
  beta = linear("beta", site.vector_BE, y.shape[-1], 0.5)
  return (1 + broadcast_spatial(gamma, y)) * y + broadcast_spatial(beta, y)


def batch_norm(y: jax.Array, site: LayerContext) -> jax.Array:
  """Conditional batch normalisation (de Vries et al., NeurIPS 2017).

      (1 + γ) (y - μ) / √(σ² + 1e-6) + β,   γ = W v, β = U v

  with μ and σ² of the batch, over all its devices. Every class has the same weight in them, however
  many samples ask for it. This is the one place where samples of a batch meet. In training, that is
  where `statistics` may be changed, their running means are kept (9/10 of the old, 1/10 of the
  new); otherwise these are used.
  """
  module, features = site.module, y.shape[-1]
  zeros = lambda: jnp.zeros((2, features), jnp.float32)
  running = module.variable("statistics", "moments", lambda: zeros().at[1].set(1.0))
  moments = running.value
  if module.is_mutable_collection("statistics"):
    space = tuple(range(1, y.ndim - 1))
    asked = jax.nn.one_hot(site.class_id_B, site.classes, dtype=jnp.float32)  # [B, K]
    sums = jnp.stack([y.mean(space), (y * y).mean(space)])  # [2, B, C]
    sums, counts = jnp.einsum("bk,mbc->mkc", asked, sums), asked.sum(0)
    if site.partition is not None:
      sums = jax.lax.pmean(sums, site.partition)
    if site.batch_axes and not module.is_initializing():
      sums, counts = jax.lax.psum((sums, counts), site.batch_axes)
    means = sums / jnp.maximum(counts, 1.0)[None, :, None]
    moments = means.sum(1) / jnp.maximum((counts > 0).sum().astype(jnp.float32), 1.0)
    if not module.is_initializing():
      running.value = 0.9 * running.value + 0.1 * jax.lax.stop_gradient(moments)
  mean, square = moments
  factor = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + 1e-6)
  y = (y - broadcast_spatial(mean[None], y)) * broadcast_spatial(factor[None], y)
  return film(y, site)


def channel_gate(y: jax.Array, site: LayerContext) -> jax.Array:
  """2 σ(W v) y, one gate for each channel: squeeze and excitation (Hu et al., CVPR 2018) by the
  class in place of the image. Half open, a gate leaves y as it is."""
  return 2 * jax.nn.sigmoid(broadcast_spatial(linear("gate", site.vector_BE, y.shape[-1]), y)) * y


def spatial_gate(y: jax.Array, site: LayerContext) -> jax.Array:
  """2 σ(ψᵀ relu(W y + U v)) y, one gate for each voxel: additive attention (Oktay et al., Attention
  U-Net, MIDL 2018) with the class for a gating signal."""
  hidden = convolve_1("features", y, y.shape[-1])
  hidden = jax.nn.relu(hidden + broadcast_spatial(linear("gate", site.vector_BE, y.shape[-1]), y))
  return 2 * jax.nn.sigmoid(convolve_1("psi", hidden, 1)) * y


def spade(y: jax.Array, site: LayerContext) -> jax.Array:
  """Spatial modulation by the skip (after Park et al., SPADE, CVPR 2019).

      (1 + γ_x) y_x + β_x,   γ = W (s ⊙ U v), β = W' (s ⊙ U v)

  In SPADE γ and β come from a map of classes; here the skip s, weighted channel by channel for the
  class, takes its place: from a constant map of the class this would be FiLM.
  """
  skip = site.shared.astype(jnp.float32)
  told = skip * broadcast_spatial(linear("class", site.vector_BE, skip.shape[-1]), skip)
  return (1 + convolve_1("gamma", told, y.shape[-1], 0.5)) * y + convolve_1(
      "beta", told, y.shape[-1], 0.5)


def convolve_1(name: str, x: jax.Array, features: int, scale: float = 2 ** 0.5) -> jax.Array:
  """W x at every voxel."""
  conv = layers.Conv(features, (1,) * (x.ndim - 2), scale=scale, name=name)
  return conv(x)


class Mechanism(NamedTuple):
  """A way for the class to act.

  Attributes:
    apply: the function; None for those of the head, which are modules.
    positions: where it makes sense.
    norm: normalisation before it in place of the network's.
    affine: whether that has a scale and a bias of its own, for all classes.
    needs_norm: whether the network must have a normalisation.
  """

  apply: Callable[[jax.Array, LayerContext], jax.Array] | None
  positions: tuple[str, ...] = LAYERS
  norm: str | None = None
  affine: bool = True
  needs_norm: bool = False


MECHANISMS = {
    "channel": Mechanism(channel),
    "film": Mechanism(film),
    # Conditional normalisation (Dumoulin et al., ICLR 2017): FiLM in place of scale and bias.
    "norm": Mechanism(film, affine=False, needs_norm=True),
    "batch_norm": Mechanism(batch_norm, norm="none"),
    "channel_gate": Mechanism(channel_gate),
    "spatial_gate": Mechanism(spatial_gate),
    "spade": Mechanism(spade, positions=("decoder",)),
    "dynamic": Mechanism(None, positions=("head",)),
    "output": Mechanism(None, positions=("head",)),
}


class ConditionedLayer(nn.Module):
  """A mechanism at one layer, with its parameters.

  Attributes:
    mechanism: a name in `MECHANISMS`.
    classes, window, partition, batch_axes, dilation: see `LayerContext`.
  """

  mechanism: str
  classes: int
  window: tuple[int, ...]
  partition: str | None = None
  batch_axes: tuple[str, ...] = ()
  dilation: int = 1

  @nn.compact
  def __call__(self, y: jax.Array, condition: Condition, channels: int,
               shared: jax.Array | None) -> jax.Array:
    site = LayerContext(*condition, self.classes, self.window, channels, shared, self.partition,
                self.batch_axes, self, self.dilation)
    return MECHANISMS[self.mechanism].apply(y.astype(jnp.float32), site).astype(y.dtype)


# --- at the head: everything before it is shared by all classes ------------------------------
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
    # Image and class count alike, whatever the lengths of their vectors.
    parts = (summary.reshape(len(vector_BE), -1), vector_BE)
    context = jnp.concatenate([p / math.sqrt(p.shape[-1]) for p in parts], axis=-1)
    x = x.astype(jnp.float32)
    layers = head_layers(x.shape[-1])
    for i, (fan_in, features) in enumerate(layers):
      init = nn.initializers.truncated_normal(math.sqrt(2.0 / fan_in))
      weight = nn.Dense(fan_in * features, use_bias=False, kernel_init=init, precision=EXACT,
                        name=f"weight_{i}")(context)
      bias = nn.Dense(features, kernel_init=nn.initializers.zeros, precision=EXACT,
                      name=f"bias_{i}")(context)
      x = jnp.einsum("b...c,bco->b...o", x, weight.reshape(-1, fan_in, features))
      x = x + jnp.broadcast_to(bias.reshape(-1, *(1,) * (x.ndim - 2), features), x.shape)
      if i < len(layers) - 1:
        x = self.activation(x)
    return x[..., 0]


class OutputChannels(nn.Module):
  """One output channel for each class and no condition (Ulrich et al., MultiTalent, MICCAI 2023).

      logits_c = w_c · x + b_c

  Attributes:
    classes: their number K.
  """

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array, class_id_B: jax.Array) -> jax.Array:
    """float32 logits [B, *shape] of the channel of each sample's class, from x [B, *shape, C]."""
    init = nn.initializers.truncated_normal(math.sqrt(2.0 / x.shape[-1]))
    kernel = self.param("kernel", init, (self.classes, x.shape[-1]), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, (self.classes,), jnp.float32)
    logits = jnp.einsum("b...c,bc->b...", x.astype(jnp.float32), kernel[class_id_B])
    return logits + jnp.broadcast_to(bias[class_id_B].reshape(-1, *(1,) * (x.ndim - 2)),
                                     logits.shape)
