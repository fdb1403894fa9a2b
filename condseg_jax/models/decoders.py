"""Decoders that are told no class: one for each class, and those of FCN and DeepLab.

The latter go from the levels of an encoder to features for the head. In the papers it is scores of
the classes that are upsampled and summed. Here these are features, as many as the finest level has,
of which the head makes scores: a head with one output channel for each class is linear and computes
the same, where there are no more classes than features.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import halo
from condseg_jax.models import layers
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import Layer


class LinearUpsample(nn.Module):
  """[B, *coarse, C] → [B, *shape, C] by linear interpolation between the centres of voxels."""

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], *self.shape, x.shape[-1]), "linear")


class FCN(nn.Module):
  """FCN-8s (Long et al., CVPR 2015): the three coarsest levels, scored, upsampled and summed.

      y = up(s_1 + up(s_2 + up(s_3))),   s_l = W_l x_l + b_l

  With five poolings by 2 the levels are those of the paper, at an 8th, 16th and 32nd of the
  resolution. Linear interpolation takes the place of a transposed convolution that begins as such.

  Attributes:
    features: output channels.
    style: of the network.
  """

  features: int
  style: BlockConfig

  @nn.compact
  def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
    """Outputs of the encoder, [B, *shape of the level, C], finest first → [B, *shape, features]."""
    y = None
    for level in range(len(levels) - 1, max(len(levels) - 4, -1), -1):
      score = layers.Conv(self.features, (1,) * (levels[0].ndim - 2), use_bias=True,
                          dtype=self.style.dtype, name=f"score_{level}")(levels[level])
      y = score if y is None else score + LinearUpsample(score.shape[1:-1], name=f"up_{level}")(y)
    return LinearUpsample(levels[0].shape[1:-1], name="up")(y)


class DeepLab(nn.Module):
  """DeepLabv3 (Chen et al., 2017): atrous spatial pyramid pooling of the coarsest level.

  Side by side a layer of a window of 1, dilated ones of 3, one for each rate, and the mean over the
  image; joined and upsampled linearly. What is farther than the border gives nothing, so that rates
  should be smaller than the level.

  Attributes:
    features: output channels.
    rates: dilations of the pyramid, in voxels of the coarsest level.
    style: of the network.
  """

  features: int
  rates: Sequence[int]
  style: BlockConfig

  @nn.compact
  def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
    """Outputs of the encoder, [B, *shape of the level, C], finest first → [B, *shape, features]."""
    x, style = levels[-1], self.style
    width, point, window = x.shape[-1], (1,) * (x.ndim - 2), (3,) * (x.ndim - 2)
    parts = [Layer(width, point, style, name="point")(x)]
    parts += [Layer(width, window, style, dilation=rate, name=f"rate_{rate}")(x)
              for rate in self.rates]
    # A normalisation would erase what is one number for each channel.
    mean = Layer(width, point, dataclasses.replace(style, norm="none"), name="mean")(
        halo.mean(x.astype(jnp.float32), None))
    parts.append(jnp.broadcast_to(mean, parts[0].shape))
    y = Layer(self.features, point, style, name="join")(jnp.concatenate(parts, axis=-1))
    return LinearUpsample(levels[0].shape[1:-1], name="up")(y)


class PerClass(nn.Module):
  """Parameters of a function for each class, and the function with those of each sample's class.

  Features are a tree of arrays with a batch axis.

  Attributes:
    begin: (key, features of one sample) → parameters.
    run: (parameters, features of one sample) → arrays with a batch axis of 1.
    classes: number of classes.
  """

  begin: Callable
  run: Callable
  classes: int

  @nn.compact
  def __call__(self, features, class_id_B: jax.Array):
    alone = jax.tree.map(lambda x: x[:1], features)
    stacked = self.param("each", lambda key: jax.vmap(lambda k: self.begin(k, alone))(
        jax.random.split(key, self.classes)))
    mine = jax.tree.map(lambda p: p[class_id_B], stacked)
    one = lambda params, x: jax.tree.map(
        lambda y: y[0], self.run(params, jax.tree.map(lambda a: a[None], x)))
    return jax.vmap(one)(mine, features)


DECODERS = ("unet", "fcn", "deeplab")  # that of the U-Net is in `dense_unet`
