"""Labels that a sample has of classes that its dataset does not annotate, written in the step.

A voxel that is liver is not spleen: where classes exclude each other (`ClassTable.exclusive`), the
positive voxels of one are negatives of the others, without anybody having annotated them. All other
voxels stay unlabelled. `complete` lets a sample decode some of these classes, after augmentation;
`losses.exclusion` is their loss. With `augment.cutmix` an image also gets a box of another one, and
with it what that one knows, of every class that is decoded.

Random numbers are keyed by the sample, as in `train.augment`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Augment
from condseg_jax.data.batch import Batch
from condseg_jax.train.cutmix import draw_mix

_KEY = 0x0714  # folded into the key of a sample, so that these draws are independent of `augment`

# (batch after `augment`, key of the step, axis of pmap or None) → batch with D decodes per image
Complete = Callable[[Batch, jax.Array, str | None], Batch]


def make_complete(exclusive_KK: np.ndarray, decodes: int, augmentation: Augment,
                  lateral_axes: np.ndarray) -> Complete:
  """Returns the function that adds decodes of further classes to a batch.

  Args:
    exclusive_KK: bool, see `ClassTable.exclusive`.
    decodes: D, the classes to decode per image, at least the N of the batch and at most K. Those
      that the dataset annotates stay where they are. All others, with β = 0 before and after, are
      drawn anew and get the labels that `known` finds. In a mixed sample, classes that the partner
      annotates come first, with its β; a class of both has the lower one, that of a pseudo-mask.
    augmentation: `cutmix` is its setting here.
    lateral_axes: see `augment`.
  """
  exclusive_KK, lateral_axes = np.asarray(exclusive_KK, bool), np.asarray(lateral_axes, bool)

  def one(sample: Batch, key: jax.Array) -> Batch:
    exclusive = jnp.asarray(exclusive_KK)
    class_id = choose(sample, key, exclusive, decodes)
    mask, beta = known(class_id, sample, exclusive)
    return sample._replace(class_id=class_id, mask=mask, beta=beta)

  def mixed(sample: Batch, key: jax.Array, partner: Batch, box: jax.Array) -> Batch:
    exclusive, box = jnp.asarray(exclusive_KK), box[..., None]
    # Outside of mixed samples the partner annotates nothing.
    partner = partner._replace(beta=partner.beta * box.any().astype(jnp.float32))
    class_id = choose(sample, key, exclusive, decodes, partner)
    mask, beta = known(class_id, sample, exclusive)
    mask_in_box, beta_in_box = known(class_id, partner, exclusive)
    both = (beta > 0) & (beta_in_box > 0)
    beta = jnp.where(both, jnp.minimum(beta, beta_in_box), jnp.maximum(beta, beta_in_box))
    return sample._replace(
        image=jnp.where(box, partner.image, sample.image), class_id=class_id,
        mask=jnp.where(box, mask_in_box, mask), beta=beta)

  def complete(batch: Batch, key: jax.Array, axis_name: str | None) -> Batch:
    keys = sample_keys(batch, key)
    if not augmentation.cutmix:
      return jax.vmap(one)(batch, keys)
    keys, mix_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    mix = draw_mix(batch, key, mix_keys, augmentation, jnp.asarray(lateral_axes), axis_name)
    return jax.vmap(mixed)(batch, keys, mix.partner, mix.box)

  return complete


def sample_keys(batch: Batch, key: jax.Array) -> jax.Array:
  """Returns the key of every sample for the draws of this module, [B]."""
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), _KEY))(batch.index)


def choose(sample: Batch, key: jax.Array, exclusive_KK: jax.Array, decodes: int,
           partner: Batch | None = None) -> jax.Array:
  """Draws the classes to decode for one sample, all different, int32 [D].

  Decodes with a mask, annotated or pseudo, stay. The others are first those of which the partner
  has a mask, then drawn uniformly from the classes that an annotated one excludes; only if there
  are too few, from all.
  """
  masked, annotated = sample.beta > 0, sample.beta == 1
  classes = exclusive_KK.shape[0]

  def among(sample: Batch) -> jax.Array:
    found = jax.nn.one_hot(sample.class_id, classes, dtype=bool) & (sample.beta > 0)[:, None]
    return found.any(0).astype(jnp.float32)

  excluded_K = (annotated[:, None] & exclusive_KK[sample.class_id]).any(0)
  score_K = (jax.random.uniform(key, (classes,)) + excluded_K.astype(jnp.float32)
             - 8 * among(sample))
  if partner is not None:
    score_K += 2 * among(partner)
  order_K = jnp.argsort(-score_K).astype(jnp.int32)
  further = decodes - sample.class_id.shape[0]
  free = jnp.pad(~masked, (0, further), constant_values=True)
  place = jnp.cumsum(free) - 1
  return jnp.where(free, order_K[place], jnp.pad(sample.class_id, (0, further)))


def known(class_id_D: jax.Array, sample: Batch,
          exclusive_KK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what one sample tells about some classes: masks uint8 [*shape, D], and β [D].

  For a class that it annotates, or that has a pseudo-mask, these are its mask and β. For any other
  class the mask is negative where an annotated class that excludes it is positive and unlabelled
  elsewhere, and β is 0. Nothing is concluded from pseudo-masks, whose β is below 1.
  """
  axes = (1,) * (sample.mask.ndim - 1)
  masked, annotated = sample.beta > 0, sample.beta == 1
  mask = jnp.full((*sample.mask.shape[:-1], class_id_D.shape[0]), UNLABELLED, jnp.uint8)
  beta = jnp.zeros(class_id_D.shape, jnp.float32)
  for n in range(sample.mask.shape[-1]):
    excluded = annotated[n] & exclusive_KK[sample.class_id[n], class_id_D]
    negative = (sample.mask[..., n:n + 1] == POSITIVE) & excluded.reshape(*axes, -1)
    mask = jnp.where(negative, jnp.uint8(NEGATIVE), mask)
  for n in range(sample.mask.shape[-1]):
    own = masked[n] & (class_id_D == sample.class_id[n])
    mask = jnp.where(own.reshape(*axes, -1), sample.mask[..., n:n + 1], mask)
    beta = jnp.where(own, sample.beta[n], beta)
  return mask, beta
