"""Unconditioned decoders: those of FCN and DeepLab, and separate decoders for each class.

The decoders of FCN and DeepLab map the levels of an encoder to features for the head. The papers
upsample and sum class scores; here these are features, as many as the finest level has, from which
the head computes the scores. A head with one output channel per class is linear, so the result is
the same as long as there are no more classes than features.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import halo
from condseg_jax.models import layers
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import Layer

DECODERS = ("unet", "fcn", "deeplab")  # the decoder of the U-Net is in `dense_unet`


class LinearUpsample(nn.Module):
  """Linear interpolation between voxel centres: [B, *coarse, C] → [B, *shape, C]."""

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], *self.shape, x.shape[-1]), "linear")


class FCN(nn.Module):
  """FCN-8s (Long et al., CVPR 2015): the three coarsest levels, scored, upsampled and summed.

      y = up(s_1 + up(s_2 + up(s_3))),   s_l = W_l x_l + b_l

  With five poolings by 2 these are the levels of the paper, at 1/8, 1/16 and 1/32 of the
  resolution. Linear interpolation replaces the transposed convolutions that the paper initialises
  to it.

  Attributes:
    features: output channels.
    style: settings of the network.
  """

  features: int
  style: BlockConfig

  @nn.compact
  def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
    """Returns [B, *shape, features].

    Args:
      levels: outputs of the encoder, [B, *shape of the level, C], finest first.
    """
    y = None
    for level in range(len(levels) - 1, max(len(levels) - 4, -1), -1):
      score = layers.Conv(self.features, (1,) * (levels[0].ndim - 2), use_bias=True,
                          dtype=self.style.dtype, name=f"score_{level}")(levels[level])
      y = score if y is None else score + LinearUpsample(score.shape[1:-1], name=f"up_{level}")(y)
    return LinearUpsample(levels[0].shape[1:-1], name="up")(y)


class DeepLab(nn.Module):
  """DeepLabv3 (Chen et al., 2017): atrous spatial pyramid pooling of the coarsest level.

  Concatenates a layer of kernel size 1, one dilated layer of kernel size 3 per rate, and the mean
  over the image; joins and upsamples them linearly. Rates should be smaller than the level: taps
  beyond the border contribute nothing.

  Attributes:
    features: output channels.
    rates: dilations of the pyramid, in voxels of the coarsest level.
    style: settings of the network.
  """

  features: int
  rates: Sequence[int]
  style: BlockConfig

  @nn.compact
  def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
    """Returns [B, *shape, features].

    Args:
      levels: outputs of the encoder, [B, *shape of the level, C], finest first.
    """
    x, style = levels[-1], self.style
    width, ones, threes = x.shape[-1], (1,) * (x.ndim - 2), (3,) * (x.ndim - 2)
    branches = [Layer(width, ones, style, name="point")(x)]
    branches += [Layer(width, threes, style, dilation=rate, name=f"rate_{rate}")(x)
                 for rate in self.rates]
    # Not normalised: that would erase a spatially constant value.
    mean = Layer(width, ones, dataclasses.replace(style, norm="none"), name="mean")(
        halo.mean(x.astype(jnp.float32), None))
    branches.append(jnp.broadcast_to(mean, branches[0].shape))
    y = Layer(self.features, ones, style, name="join")(jnp.concatenate(branches, axis=-1))
    return LinearUpsample(levels[0].shape[1:-1], name="up")(y)


class PerClass(nn.Module):
  """A function with separate parameters for each class.

  The parameter `each` stacks the parameters of all classes along its first axis; every sample is
  computed with those of its class.

  Attributes:
    init_fn: (key, features of one sample) → parameters.
    apply_fn: (parameters, features of one sample) → arrays. Both have a batch axis of length 1.
    classes: number of classes K.
  """

  init_fn: Callable
  apply_fn: Callable
  classes: int

  @nn.compact
  def __call__(self, features: Any, class_id_B: jax.Array) -> Any:
    """Returns the arrays of `apply_fn` for every sample, with a batch axis.

    Args:
      features: tree of arrays with a batch axis.
      class_id_B: int class ids.
    """
    first = jax.tree.map(lambda x: x[:1], features)
    params_K = self.param("each", lambda key: jax.vmap(lambda k: self.init_fn(k, first))(
        jax.random.split(key, self.classes)))
    params_B = jax.tree.map(lambda p: p[class_id_B], params_K)

    def apply_one(params, x):
      outputs = self.apply_fn(params, jax.tree.map(lambda a: a[None], x))
      return jax.tree.map(lambda y: y[0], outputs)

    return jax.vmap(apply_one)(params_B, features)


def decoder_per_class(network: nn.Module, classes: int) -> PerClass:
  """Makes a decoder with separate parameters per class from that of an unconditioned network.

  Args:
    network: an unbound `DenseUNet` without condition.
    classes: number of classes K.
  """
  class_id_B = np.zeros(1, np.int32)  # ignored by the network

  def init(key, features):
    return network.init(key, features, class_id_B, method=network.decode_levels)["params"]

  def apply(params, features):
    return network.apply({"params": params}, features, class_id_B, method=network.decode_levels)

  return PerClass(init, apply, classes)
