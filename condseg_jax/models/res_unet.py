"""The U-Nets of nnU-Net, residual (ResEnc presets, Isensee et al., MICCAI 2024) and plain.

    image ─ stem ─ units ─────────────── skip ──────────────── layer ─ head ─ logits of the class
                     └ units, strided ── skip ── layer ─── up ───┘
                         └ units, strided ── up ──┘               (decoder: class-conditioned)

Most of the layers are in the encoder, which runs once per image; a level of the decoder is an
upsampling and one layer, so that a further class costs little. Levels have `channels` features,
doubled from level to level up to `max_channels`.

A unit is two layers with a residual connection. The first unit of a level has a strided convolution
instead of a pooling; its connection is averaged over the same blocks and projected. The plain U-Net
(nnU-Net's default, Isensee et al., Nature Methods 2021) has layers in place of the units.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import layers
from condseg_jax.models.blocks import Block
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import Layer
from condseg_jax.models.blocks import PlainBlock
from condseg_jax.models.check import check_res_unet
from condseg_jax.models.class_vector import ClassVector
from condseg_jax.models.unet import Features
from condseg_jax.models.unet import UNet

MAX_FEATURES = 320


class ResidualUnit(nn.Module):
  """Two layers and a residual connection: y = a(F(x) + W x).

  F ends with the normalisation. With strides, W begins with the mean over blocks of their shape; if
  the numbers of channels differ, it ends with a normalised projection; otherwise W is the identity.

  Attributes:
    features: output channels.
    strides: of the first layer, per spatial axis.
    style: settings of the network.
  """

  features: int
  strides: tuple[int, ...]
  style: BlockConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, *shape / strides, features] from [B, *shape, C]."""
    ndim = len(self.strides)
    strides = self.strides if max(self.strides) > 1 else None
    y = Layer(self.features, (3,) * ndim, self.style, strides=strides, name="layer_0")(x)
    y = Layer(self.features, (3,) * ndim, self.style, activates=False, name="layer_1")(y)
    if strides is not None:
      x = layers.average_pool(x, strides)
    if x.shape[-1] != self.features:
      x = Layer(self.features, (1,) * ndim, self.style, activates=False, name="projection")(x)
    return layers.ACTIVATIONS[self.style.activation](x + y)


class ResidualLevel(nn.Module):
  """The units of one level of the encoder.

  Attributes:
    units: number of units.
    features: output channels.
    strides: of the first unit, per spatial axis.
    style: settings of the network.
  """

  units: int
  features: int
  strides: tuple[int, ...]
  style: BlockConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, *shape / strides, features] from [B, *shape, C]."""
    for i in range(self.units):
      strides = self.strides if i == 0 else (1,) * len(self.strides)
      x = ResidualUnit(self.features, strides, self.style, name=f"unit_{i}")(x)
    return x


class PlainLevel(ResidualLevel):
  """Layers in place of the units, the first of them strided."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, *shape / strides, features] from [B, *shape, C]."""
    for i in range(self.units):
      strides = self.strides if i == 0 and max(self.strides) > 1 else None
      x = Layer(self.features, (3,) * len(self.strides), self.style, strides=strides,
                name=f"layer_{i}")(x)
    return x


class ResUNet(UNet):
  """The network; its submodules have the names of those of `dense_unet.DenseUNet`.

  Attributes:
    codes: class codes, in the order of the ids.
    strides: strides of the levels below the finest, finest first, each a tuple with one stride per
      axis; its length (2 or 3) makes the network 2-D or 3-D.
    layers_per_level: residual units at every level of the encoder, finest first; if it is plain,
      layers, of which the stem is the first.
    decoder_layers_per_level: layers at every level of the decoder, which has no coarsest level;
      None for one each.
    channels: features at the finest level.
    max_channels: largest number of features of a coarser level.
    residual: whether the encoder consists of residual units; of layers otherwise.
    norm: `group`, `instance` or `none`.
    activation: a name in `layers.ACTIVATIONS`.
    position: where the condition enters: `none`; `input`, the stem; `decoder`, every layer of the
      decoder, next to the skip.
    mechanism: how it acts there, a name in `conditioning.MECHANISMS`.
    vector: representation of a class, see `class_vector.ClassVector`.
    embedding_size: length of a learned class vector.
    texts: text embeddings for `vector` = `text`, in the order of the ids.
    from_level: coarsest conditioned level of the decoder; None for all levels. Coarser levels are
      shared by all classes and computed in `encode`.
    dtype: computation dtype; parameters, normalisation statistics, class codes and logits are
      float32.
    deep_supervision: number of decoder levels, from the second finest on, with an auxiliary head
      for the training loss.
    remat: recompute the levels in the backward pass.
    batch_axes: mapped axes that a training batch is spread over, for batch normalisation.
  """

  codes: tuple[float, ...]
  strides: Sequence[Sequence[int]]
  layers_per_level: Sequence[int]
  decoder_layers_per_level: Sequence[int] | None = None
  channels: int = 32
  max_channels: int = MAX_FEATURES
  residual: bool = True
  norm: str = "instance"
  activation: str = "leaky_relu"
  position: str = "decoder"
  mechanism: str = "channel"
  vector: str = "hash"
  embedding_size: int = 8
  texts: tuple[tuple[float, ...], ...] = ()
  from_level: int | None = None
  dtype: jnp.dtype = jnp.float32
  deep_supervision: int = 0
  remat: bool = False
  batch_axes: tuple[str, ...] = ()

  def check(self) -> None:
    """Raises ValueError for an invalid combination of settings."""
    check_res_unet(self)

  def setup(self) -> None:
    self.check()
    self.stem = Layer(self.channels, (3,) * self.ndim, self.style)
    self.down = [self._level(level, units) for level, units in enumerate(self.layers_per_level)]
    self.up = [layers.Upsample(self.width(level), strides, self.dtype)
               for level, strides in enumerate(self.strides)]
    self.merge = [self._block(level, count) for level, count in enumerate(self.decoder_layers)]
    self.head = self._logit_conv()
    self.coarse_heads = [self._logit_conv() for _ in range(self.deep_supervision)]
    if self.position != "none":
      self.class_vector = ClassVector(self.vector, self.codes, self.embedding_size, self.texts)

  @property
  def style(self) -> BlockConfig:
    """Settings shared by all layers."""
    return BlockConfig(self.norm, self.activation, self.dtype, self.mechanism, len(self.codes),
                       batch_axes=self.batch_axes)

  @property
  def decoder_layers(self) -> Sequence[int]:
    """Layers at every level of the decoder, finest first."""
    if self.decoder_layers_per_level is None:
      return (1,) * len(self.strides)
    return self.decoder_layers_per_level

  @property
  def encoder_sees_class(self) -> bool:
    """Whether `encode` depends on the class and so must run once per class."""
    return self.position == "input"

  @property
  def conditioned_levels(self) -> int:
    """Number of decoder levels, finest first, that belong to `decode`."""
    return len(self.strides) if self.from_level is None else self.from_level + 1

  def width(self, level: int) -> int:
    """Returns the number of features of a level."""
    return min(self.channels * 2 ** level, max(self.channels, self.max_channels))

  def encode(self, image_BDHWC: jax.Array, class_id_B: jax.Array | None = None) -> Features:
    """Computes the encoder and the unconditioned decoder levels, once per image.

    Args:
      image_BDHWC: normalised image; without D in 2-D.
      class_id_B: int [B], required if `encoder_sees_class`.
    """
    condition = None
    if self.encoder_sees_class:
      if class_id_B is None:
        raise ValueError(f"position {self.position!r} needs the class in `encode`")
      condition = self._condition(class_id_B)
    x = self.stem(image_BDHWC.astype(self.dtype), None, condition)
    levels = []
    for level in self.down:
      x = level(x)
      levels.append(x)
    return self.decode_shared(levels)

  def _level(self, level: int, units: int) -> nn.Module:
    kind: type[ResidualLevel] = ResidualLevel if self.residual else PlainLevel
    if self.remat:
      kind = nn.remat(kind)
    if level == 0 and not self.residual:
      units -= 1  # the stem
    strides = tuple(self.strides[level - 1]) if level else (1,) * self.ndim
    return kind(units, self.width(level), strides, self.style)

  def _block(self, level: int, count: int) -> Block:
    kind = nn.remat(PlainBlock) if self.remat else PlainBlock
    return kind(count, 0, self.width(level), self.ndim, self.style)  # growth is for dense blocks
