"""The class-conditional U-Net (after Dmitriev & Kaufman, CVPR 2019), 2-D and 3-D.

    image ─ stem ─ block 0 ──────────── skip ───────────── block 0 ─ head ─ logits of the class
                      └ pool ─ block 1 ─ skip ─ block 1 ─ up ┘
                                  └ pool ─ block 2 ─ up ┘        (decoder: class-conditioned)

A block (see `blocks`) is densely connected by default and computes `channels · (level + 1)`
features, proportional to the level as in the paper. The paper does not specify the layers per
block, the growth, the normalisation and the activation; the defaults are ours.

`encode` is computed once per image, `decode` once per class.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import decoders
from condseg_jax.models import halo
from condseg_jax.models import heads
from condseg_jax.models import layers
from condseg_jax.models.blocks import Block
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import BLOCKS
from condseg_jax.models.blocks import Layer
from condseg_jax.models.check import check_network
from condseg_jax.models.class_vector import ClassVector
from condseg_jax.models.unet import Features
from condseg_jax.models.unet import UNet


class DenseUNet(UNet):
  """The network.

  Attributes:
    codes: class codes, in the order of the ids.
    strides: strides of the levels - 1 poolings, finest first, each a tuple with one stride per
      axis; its length (2 or 3) makes the network 2-D or 3-D.
    layers_per_level: layers per block at every level, finest first.
    decoder_layers_per_level: the same for the decoder, which has no coarsest level; None repeats
      `layers_per_level`.
    channels: features at the finest level; level l has (l + 1) times as many.
    growth: channels of a dense layer at the finest level; (l + 1) times as many at level l.
    encoder_block, decoder_block: names in `blocks.BLOCKS`.
    decoder: `unet`, or one of the unconditioned `fcn` and `deeplab` (see `decoders`). With
      `deeplab` a level that is not pooled (strides 1) doubles the dilation instead.
    rates: dilation rates of the pyramid of `deeplab`.
    norm: `group`, `instance` or `none`.
    activation: a name in `layers.ACTIVATIONS`.
    position: where the condition enters: `none`; `input` (cond-2nd: next to the image); `encoder`
      (cond-enc: every block below the finest, after its skip branches off); `decoder` (cond-dec:
      every decoder block, next to the skip); `output_head` (the last layers only, everything before
      them shared by all classes); `per_class_decoders` (a separate unconditioned decoder per class,
      after Chen et al., Med3D, 2019).
    mechanism: how it acts there, a name in `conditioning.MECHANISMS`.
    vector: representation of a class, see `class_vector.ClassVector`.
    embedding_size: length of a learned class vector.
    texts: text embeddings for `vector` = `text`, in the order of the ids.
    from_level: coarsest conditioned level of the decoder; None for all levels. Coarser levels are
      shared by all classes and computed in `encode`.
    dtype: computation dtype; parameters, normalisation statistics, class codes and logits are
      float32.
    deep_supervision: number of decoder levels, from the second finest on, with an auxiliary head
      for the training loss; prediction computes the finest level only.
    remat: recompute the blocks in the backward pass: less memory, about a third more work, the same
      numbers.
    partition: mesh axis that a volume is split along over several devices, inside `jax.shard_map`
      (see `halo`); None in training, where every device holds whole inputs.
    batch_axes: mapped axes that a training batch is spread over, for batch normalisation.
  """

  codes: tuple[float, ...]
  strides: Sequence[Sequence[int]]
  layers_per_level: Sequence[int]
  channels: int = 16
  growth: int = 16
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
  decoder_layers_per_level: Sequence[int] | None = None
  encoder_block: str = "dense"
  decoder_block: str = "dense"
  decoder: str = "unet"
  rates: Sequence[int] = (6, 12, 18)
  partition: str | None = None
  batch_axes: tuple[str, ...] = ()

  def check(self) -> None:
    """Raises ValueError for an invalid combination of settings."""
    check_network(self)

  def setup(self) -> None:
    self.check()
    # A submodule without calls has no parameters, so most are set up whatever the settings.
    self.stem = Layer(self.channels, (3,) * self.ndim, self.style)
    self.down = [self._block(self.encoder_block, level, count, self._dilation(level))
                 for level, count in enumerate(self.layers_per_level)]
    if self.decoder != "unet":
      self.fuse = self._baseline_decoder()
    self.up = [layers.Upsample(self._width(level), strides, self.dtype)
               for level, strides in enumerate(self.strides)]
    self.merge = [self._block(self.decoder_block, level, count)
                  for level, count in enumerate(self.decoder_layers)]
    self.head = self._head()
    self.coarse_heads = [self._logit_conv() for _ in range(self.deep_supervision)]
    if self.position == "per_class_decoders":
      unconditioned = self.clone(position="none", from_level=None, parent=None)
      self.decoders = decoders.decoder_per_class(unconditioned, len(self.codes))
    elif self.position != "none":
      self.class_vector = ClassVector(self.vector, self.codes, self.embedding_size, self.texts)

  @property
  def style(self) -> BlockConfig:
    """Settings shared by all layers."""
    return BlockConfig(self.norm, self.activation, self.dtype, self.mechanism, len(self.codes),
                       self.partition, self.batch_axes)

  @property
  def decoder_layers(self) -> Sequence[int]:
    """Layers per decoder block at every level, finest first."""
    if self.decoder_layers_per_level is None:
      return self.layers_per_level[:-1]
    return self.decoder_layers_per_level

  @property
  def encoder_sees_class(self) -> bool:
    """Whether `encode` depends on the class and so must run once per class."""
    return self.position in ("input", "encoder")

  @property
  def conditioned_levels(self) -> int:
    """Number of decoder levels, finest first, that belong to `decode`."""
    if self.position == "output_head" or self.decoder != "unet":
      return 0
    return len(self.strides) if self.from_level is None else self.from_level + 1

  def encode(self, image_BDHWC: jax.Array, class_id_B: jax.Array | None = None) -> Features:
    """Computes the encoder and the unconditioned decoder levels, once per image.

    Args:
      image_BDHWC: normalised image; without D in 2-D.
      class_id_B: int [B], required if `encoder_sees_class`.
    """
    condition = self._condition(class_id_B) if self.encoder_sees_class else None
    x = self.stem(image_BDHWC.astype(self.dtype), None,
                  condition if self.position == "input" else None)
    x = self.down[0](x)
    skips = [x]
    for level in range(1, len(self.layers_per_level)):
      x = layers.max_pool(x, self.strides[level - 1])
      x = self.down[level](x, None, condition if self.position == "encoder" else None)
      skips.append(x)
    pooled = None
    if (self.position, self.mechanism) == ("output_head", "dynamic"):
      pooled = halo.mean(x.astype(jnp.float32), self.partition)
    if self.decoder != "unet":
      return Features(self.fuse(skips), (), pooled)
    return self.decode_shared(skips)._replace(pooled=pooled)

  def decode_levels(self, features: Features, class_id_B: jax.Array) -> tuple[jax.Array, ...]:
    """Computes the logits at every supervised level, see `UNet.decode_levels`."""
    if self.position == "per_class_decoders":
      return self.decoders(features, class_id_B)
    if self.position == "output_head":
      if self.mechanism == "output":
        return (self.head(features.x, class_id_B),)
      return (self.head(features.x, features.pooled, self.class_vector(class_id_B)),)
    if self.decoder != "unet":
      return (self.head(features.x)[..., 0],)
    return super().decode_levels(features, class_id_B)

  def _width(self, level: int) -> int:
    return self.channels * (level + 1)

  def _head(self) -> nn.Module:
    if self.position != "output_head":
      return self._logit_conv()
    if self.mechanism == "output":
      return heads.OutputChannels(len(self.codes))
    return heads.DynamicHead(layers.ACTIVATIONS[self.activation])

  def _baseline_decoder(self) -> nn.Module:
    if self.decoder == "fcn":
      return decoders.FCN(self.channels, self.style)
    return decoders.DeepLab(self.channels, tuple(self.rates), self.style)

  def _dilation(self, level: int) -> int:
    """Returns the dilation of the encoder's convolutions at a level."""
    if self.decoder != "deeplab":
      return 1
    return 2 ** sum(set(strides) == {1} for strides in self.strides[:level])

  def _block(self, kind: str, level: int, count: int, dilation: int = 1) -> Block:
    block = nn.remat(BLOCKS[kind]) if self.remat else BLOCKS[kind]
    return block(count, self.growth * (level + 1), self._width(level), self.ndim, self.style,
                 dilation)
