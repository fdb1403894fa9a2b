"""What the U-Nets share: names of submodules, the way through the decoder, the heads."""

from collections.abc import Sequence
import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.models import layers
from condseg_jax.models.conditioning import Condition

# Part of each kind of submodule. The names of submodules are checkpoint keys: a kind and, except
# for `stem` and `head`, a level (0 is the finest), e.g. `down_1`.
PARTS = {"stem": "encoder", "down": "encoder", "up": "decoder", "merge": "decoder",
         "head": "decoder"}
BLOCK_KINDS = ("down", "merge")  # blocks of encoder and decoder, each with layers inside


def kind_and_level(name: str) -> tuple[str, int] | None:
  """Parses the name of a submodule in the tree of parameters, e.g. `down_1` or `head`.

  Returns:
    A key of `PARTS` and a level; None for any other submodule, such as the class vector.
  """
  kind, _, level = name.partition("_")
  return (kind, int(level or 0)) if kind in PARTS else None


class Features(NamedTuple):
  """The output of `encode`.

  Attributes:
    x: features of the coarsest level not yet decoded, [B, *shape, C].
    skips: outputs of the encoder at every finer level, finest first.
    pooled: spatial means of the coarsest features, [B, *1s, C], if the head reads them.
  """

  x: jax.Array
  skips: tuple[jax.Array, ...]
  pooled: jax.Array | None = None


class UNet(nn.Module):
  """A U-Net whose decoder runs once per class; a subclass sets up the submodules.

  A subclass has the fields `strides`, `position` and `deep_supervision`, the property
  `conditioned_levels`, and the submodules `up`, `merge` (one per decoder level, finest first),
  `head`, `coarse_heads` and, if it is conditioned, `class_vector`.
  """

  @property
  def ndim(self) -> int:
    """Number of spatial axes."""
    return len(self.strides[0])

  @property
  def stride(self) -> tuple[int, ...]:
    """Product of the strides per axis; the spatial shape of an input must be a multiple of it."""
    return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))

  def decode_shared(self, levels: Sequence[jax.Array]) -> Features:
    """Computes the decoder levels that all classes share.

    Args:
      levels: outputs of the encoder, finest first.
    """
    *skips, x = levels
    while len(skips) > self.conditioned_levels:
      x = self._merge(x, skips, None)
    return Features(x, tuple(skips))

  def decode(self, features: Features, class_id_B: jax.Array) -> jax.Array:
    """Computes the logits of one class per sample, float32 [B, *shape].

    Args:
      features: output of `encode`.
      class_id_B: int [B].
    """
    return self.decode_levels(features, class_id_B)[0]

  def decode_levels(self, features: Features, class_id_B: jax.Array) -> tuple[jax.Array, ...]:
    """Computes the logits of one class per sample at every supervised level.

    Args:
      features: output of `encode`.
      class_id_B: int [B].

    Returns:
      1 + `deep_supervision` arrays, float32 [B, *shape of the level], finest first. Under jit,
      unused levels are not computed.
    """
    condition = self._condition(class_id_B) if self.position == "decoder" else None
    x, skips = features.x, list(features.skips)
    logits = []
    while skips:
      x = self._merge(x, skips, condition)
      level = len(skips)
      if level <= self.deep_supervision:
        head = self.coarse_heads[level - 1] if level else self.head
        logits.append(head(x)[..., 0])
    return tuple(reversed(logits))

  def __call__(self, image_BDHWC: jax.Array, class_id_B: jax.Array) -> jax.Array:
    """Computes the logits of one class per sample, float32 [B, *shape]; see `encode`, `decode`."""
    return self.decode(self.encode(image_BDHWC, class_id_B), class_id_B)

  def _condition(self, class_id_B: jax.Array) -> Condition:
    return Condition(self.class_vector(class_id_B), class_id_B)

  def _merge(self, x: jax.Array, skips: list[jax.Array], condition: Condition | None) -> jax.Array:
    """Computes one decoder level; removes its skip, the last one, from the list."""
    skip = skips.pop()
    level = len(skips)
    return self.merge[level](self.up[level](x), skip, condition)

  def _logit_conv(self) -> layers.Conv:
    # In float32: rounded to bfloat16, the scores of two classes would often tie.
    return layers.Conv(1, (1,) * self.ndim, use_bias=True, dtype=jnp.float32)
