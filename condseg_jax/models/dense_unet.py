"""The class-conditional U-Net (after Dmitriev & Kaufman, CVPR 2019), 2-D and 3-D.

    image ─ stem ─ block 0 ──────────── skip ───────────── block 0 ─ head ─ logits of the class
                      └ pool ─ block 1 ─ skip ─ block 1 ─ up ┘
                                  └ pool ─ block 2 ─ up ┘        (decoder: told the class)

A block (see `blocks`) is densely connected if nothing else is asked for, and makes `channels ·
(level + 1)` features, proportional to depth as in the paper. The paper leaves the layers per block,
the growth, the normalisation and the activation open; the defaults are ours.

`encode` holds all that is computed once per image, `decode` what is computed once per class.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.models import conditioning
from condseg_jax.models import decoders
from condseg_jax.models import halo
from condseg_jax.models import layers
from condseg_jax.models.blocks import Block
from condseg_jax.models.blocks import BlockConfig
from condseg_jax.models.blocks import BLOCKS
from condseg_jax.models.blocks import Layer
from condseg_jax.models.check import check_network
from condseg_jax.models.class_vector import ClassVector


class Features(NamedTuple):
  """What `decode` needs of an image.

  Attributes:
    x: features at the coarsest level that is still to be decoded, [B, *shape, C].
    skips: the encoder's output of every finer level, finest first.
    summary: means over space of the coarsest features, [B, *1s, C], where the head needs them.
  """

  x: jax.Array
  skips: tuple[jax.Array, ...]
  summary: jax.Array | None = None


class DenseUNet(nn.Module):
  """The network.

  Attributes:
    codes: code of every class, in the order of their ids.
    strides: pooling per level, finest first, one tuple of one stride per axis for each of the
      levels - 1 poolings; its inner length makes the network 2-D or 3-D.
    depth: layers in the block of every level, finest first.
    decoder_depth: the same for the decoder, which has no coarsest level; None for those of `depth`.
    channels: features of the finest level; level l has (l + 1) times as many.
    growth: channels of a dense layer at the finest level; at level l (l + 1) times as many.
    encoder_block, decoder_block: how layers are connected, names in `blocks.BLOCKS`.
    decoder: `unet`, or `fcn` or `deeplab` (see `decoders`), which are told no class. With the last
      a level that is not pooled (strides 1) is dilated instead, twice as far as the one before.
    rates: of the pyramid of `deeplab`.
    norm: group | instance | none.
    activation: a name in `layers.ACTIVATIONS`.
    position: where the condition enters: `none`, `input` (cond-2nd: beside the image), `encoder`
      (cond-enc: into every block below the finest, after its skip has left), `decoder` (cond-dec:
      into every decoder block, beside the skip), `head` (into the last layers, everything before
      them shared by all classes), `decoders` (a decoder for each class and no condition, after Chen
      et al., Med3D, 2019).
    mechanism: how it acts there, a name in `conditioning.MECHANISMS`.
    vector: what stands for a class, see `class_vector.ClassVector`.
    embedding_size: length of a vector that is learned.
    texts: the fixed vectors of `vector` = `text`, in the order of the ids.
    from_level: coarsest decoder level that sees the class; None for all of them. Coarser ones are
      shared by all classes and computed in `encode`.
    dtype: of the computation; parameters, normalisation statistics, class codes and logits are
      float32.
    deep_supervision: number of decoder levels, from the second finest on, that training takes
      logits of too, each with a head of its own; prediction computes the finest alone.
    remat: blocks keep their input alone for the gradient and are computed again from it: less
      memory, about a third more work, the same numbers.
    partition: mesh axis that one volume is split along over several devices, inside
      `jax.shard_map` (see `halo`); None, as always in training, where a device holds whole inputs.
    batch_axes: mapped axes that a batch is spread over in training, for batch normalisation.
  """

  codes: tuple[float, ...]
  strides: Sequence[Sequence[int]]
  depth: Sequence[int]
  channels: int = 16
  growth: int = 16
  norm: str = "group"
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
  decoder_depth: Sequence[int] | None = None
  encoder_block: str = "dense"
  decoder_block: str = "dense"
  decoder: str = "unet"
  rates: Sequence[int] = (6, 12, 18)
  partition: str | None = None
  batch_axes: tuple[str, ...] = ()

  def check(self) -> None:
    """Raises ValueError for settings that make no network."""
    check_network(self)

  def setup(self):
    self.check()
    levels = len(self.depth)
    self.stem = Layer(self.channels, (3,) * self.ndim, self.style)
    self.down = [self._block(self.encoder_block, level, n, self._dilation(level))
                 for level, n in enumerate(self.depth)]
    if self.decoder == "fcn":
      self.fuse = decoders.FCN(self.channels, self.style)
    elif self.decoder == "deeplab":
      self.fuse = decoders.DeepLab(self.channels, tuple(self.rates), self.style)
    self.up = [layers.Upsample(self._width(level), self.strides[level], self.dtype)
               for level in range(levels - 1)]
    self.merge = [self._block(self.decoder_block, *at) for at in enumerate(self.decoder_depths)]
    self.head = self._head()
    self.coarse_heads = [self._channel() for _ in range(self.deep_supervision)]
    if self.position not in ("none", "decoders"):
      self.class_vector = ClassVector(self.vector, self.codes, self.embedding_size, self.texts)
    if self.position == "decoders":
      inner = self.clone(position="none", from_level=None, parent=None)
      decode = functools.partial(inner.apply, method=inner.decode_levels)
      ids = np.zeros(1, np.int32)
      self.decoders = decoders.PerClass(
          lambda key, x: inner.init(key, x, ids, method=inner.decode_levels)["params"],
          lambda params, x: decode({"params": params}, x, ids), len(self.codes))

  @property
  def style(self) -> BlockConfig:
    return BlockConfig(self.norm, self.activation, self.dtype, self.mechanism, len(self.codes),
                 self.partition, self.batch_axes)

  @property
  def decoder_depths(self) -> Sequence[int]:
    """Layers in the decoder's block of every level, finest first."""
    return self.depth[:-1] if self.decoder_depth is None else self.decoder_depth

  @property
  def ndim(self) -> int:
    return len(self.strides[0])

  @property
  def stride(self) -> tuple[int, ...]:
    """The spatial shape of an input must be a multiple of this."""
    product = [1] * self.ndim
    for level in self.strides:
      product = [a * b for a, b in zip(product, level, strict=True)]
    return tuple(product)

  @property
  def encoder_sees_class(self) -> bool:
    """Whether `encode` depends on the class and so must run once for each."""
    return self.position in ("input", "encoder")

  def encode(self, image_BDHWC: jax.Array, class_id_B: jax.Array | None = None) -> Features:
    """All that an image needs once: the encoder, and the decoder levels that see no class.

    Args:
      image_BDHWC: normalised image; without D in 2-D.
      class_id_B: int [B], needed where `encoder_sees_class`.
    """
    told = self._condition(class_id_B) if self.encoder_sees_class else None
    x = self.stem(image_BDHWC.astype(self.dtype), None, told if self.position == "input" else None)
    x = self.down[0](x)
    skips = [x]
    for level in range(1, len(self.depth)):
      x = layers.max_pool(x, self.strides[level - 1])
      x = self.down[level](x, None, told if self.position == "encoder" else None)
      skips.append(x)
    summary = None
    if (self.position, self.mechanism) == ("head", "dynamic"):
      summary = halo.mean(x.astype(jnp.float32), self.partition)
    if self.decoder != "unet":
      return Features(self.fuse(skips), (), summary)
    skips.pop()
    while len(skips) > self.conditioned_levels:
      x = self._merge(x, skips, None)
    return Features(x, tuple(skips), summary)

  def decode(self, features: Features, class_id_B: jax.Array) -> jax.Array:
    """The logits of one class per sample.

    Args:
      features: of `encode`.
      class_id_B: int [B].

    Returns:
      float32 [B, *shape].
    """
    return self.decode_levels(features, class_id_B)[0]

  def decode_levels(self, features: Features, class_id_B: jax.Array) -> tuple[jax.Array, ...]:
    """The logits of one class per sample at every supervised level, finest first.

    Returns:
      1 + `deep_supervision` arrays, float32 [B, *shape of the level]. Under jit, what is not used
      of them is not computed.
    """
    if self.position == "decoders":
      return self.decoders(features, class_id_B)
    if self.position == "head":
      if self.mechanism == "output":
        return (self.head(features.x, class_id_B),)
      return (self.head(features.x, features.summary, self.class_vector(class_id_B)),)
    if self.decoder != "unet":
      return (self.head(features.x)[..., 0],)
    told = self._condition(class_id_B) if self.position == "decoder" else None
    x, skips = features.x, list(features.skips)
    logits = []
    while skips:
      x = self._merge(x, skips, told)
      level = len(skips)
      if level <= self.deep_supervision:
        head = self.coarse_heads[level - 1] if level else self.head
        logits.append(head(x)[..., 0])
    return tuple(reversed(logits))

  def __call__(self, image_BDHWC: jax.Array, class_id_B: jax.Array) -> jax.Array:
    """Logits of one class per sample, float32 [B, *shape]."""
    return self.decode(self.encode(image_BDHWC, class_id_B), class_id_B)

  def _condition(self, class_id_B: jax.Array) -> conditioning.Condition:
    return conditioning.Condition(self.class_vector(class_id_B), class_id_B)

  def _merge(self, x, skips, told):
    """One decoder level; takes its skip off the list."""
    skip = skips.pop()
    level = len(skips)
    return self.merge[level](self.up[level](x), skip, told)

  @property
  def conditioned_levels(self) -> int:
    """How many decoder levels, finest first, belong to `decode`."""
    if self.position == "head" or self.decoder != "unet":
      return 0
    return len(self.depth) - 1 if self.from_level is None else self.from_level + 1

  def _width(self, level: int) -> int:
    return self.channels * (level + 1)

  def _head(self) -> nn.Module:
    if self.position != "head":
      return self._channel()
    if self.mechanism == "output":
      return conditioning.OutputChannels(len(self.codes))
    return conditioning.DynamicHead(layers.ACTIVATIONS[self.activation])

  def _channel(self) -> layers.Conv:
    # In float32: rounded to bfloat16, the scores of two classes would often tie.
    return layers.Conv(1, (1,) * self.ndim, use_bias=True, dtype=jnp.float32)

  def _dilation(self, level: int) -> int:
    """Of the encoder's convolutions."""
    if self.decoder != "deeplab":
      return 1
    return 2 ** sum(set(strides) == {1} for strides in self.strides[:level])

  def _block(self, kind: str, level: int, depth: int, dilation: int = 1) -> Block:
    block = nn.remat(BLOCKS[kind]) if self.remat else BLOCKS[kind]
    return block(depth, self.growth * (level + 1), self._width(level), self.ndim, self.style,
                 dilation)
