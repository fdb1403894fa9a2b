"""Partners and boxes of `augment.cutmix`; `train.unlabelled` exchanges what is in them.

After Yun et al., CutMix (ICCV 2019), with masks in place of mixed labels. The partner of a sample
is the next of the whole batch, so that all devices together mix as one would.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from condseg_jax.config import Augment
from condseg_jax.data.batch import Batch
from condseg_jax.train.augment import mirrored
from condseg_jax.train.augment import sided

SHARE = (0.02, 0.4)  # of the image that a box takes, as in LTUDA and UniMatch
ASPECT = 3.3  # largest ratio of the sides, in units of those of the image


class Mix(NamedTuple):
  """How a batch is mixed.

  Attributes:
    partner: the batch of the partners.
    box: bool [B, *shape], True where the partner's voxels are taken; False throughout where a
      sample is not mixed.
  """

  partner: Batch
  box: jax.Array


def draw_mix(batch: Batch, key: jax.Array, sample_keys: jax.Array, settings: Augment,
             lateral_axes: jax.Array, axis_name: str | None) -> Mix:
  """Draws partners and boxes.

  A sample is left as it is unless its partner is of another dataset. So is one where image and
  partner were mirrored differently along an axis along which one of them has a class with sides:
  the left kidney of the box would be on the wrong side of the image, or its right kidney would look
  like a left one.

  Args:
    batch: the augmented batch, or a device's part of it.
    key: key of the step, which `augment` got.
    sample_keys: key of every sample, [B].
    settings: `cutmix` is the probability with which a sample is mixed.
    lateral_axes: see `augment`.
    axis_name: axis over whose devices the batch is divided; None if it is whole. The images of all
      devices are then gathered on each.
  """
  flips = mirrored(batch, key, settings, lateral_axes)
  sides = sided(batch, lateral_axes)
  partner, partner_flips, partner_sides = next_samples((batch, flips, sides), batch.index,
                                                       axis_name)
  clash = ((flips != partner_flips) & (sides | partner_sides)).any(1)
  allowed = (partner.dataset != batch.dataset) & ~clash
  shape = batch.mask.shape[1:-1]

  def one(key, allowed):
    coin_key, box_key = jax.random.split(key)
    wanted = jax.random.bernoulli(coin_key, settings.cutmix)
    return draw_box(box_key, shape) & (wanted & allowed).reshape((1,) * len(shape))
  return Mix(partner, jax.vmap(one)(sample_keys, allowed))


def next_samples(tree, index_B: jax.Array, axis_name: str | None):
  """Returns, for every sample of a batch, the leaves of that whose index is the next (cyclic)."""
  if axis_name is not None:
    tree, everything = jax.lax.all_gather((tree, index_B), axis_name, tiled=True)
  else:
    everything = index_B
  place = jnp.argsort(everything)[(index_B + 1) % everything.shape[0]]
  return jax.tree.map(lambda leaf: leaf[place], tree)


def draw_box(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws a box inside an image, bool [*shape]; its share of the volume is uniform in `SHARE`."""
  share_key, aspect_key, place_key = jax.random.split(key, 3)
  n, limit = len(shape), math.log(ASPECT) / 2
  share = jax.random.uniform(share_key, (), jnp.float32, *SHARE)
  aspect = jax.random.uniform(aspect_key, (n,), jnp.float32, -limit, limit)
  sides = jnp.minimum(share ** (1 / n) * jnp.exp(aspect - aspect.mean()), 1.0)
  start = jax.random.uniform(place_key, (n,)) * (1 - sides)
  box = jnp.ones(shape, bool)
  for axis, size in enumerate(shape):
    place = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    along = (place >= start[axis]) & (place < start[axis] + sides[axis])
    box &= along.reshape([size if a == axis else 1 for a in range(n)])
  return box
