"""Labels that a sample has of classes that its dataset does not annotate, written in the step.

A voxel that is liver is not spleen: where classes exclude each other (`ClassTable.exclusive`), the
positive voxels of one are negatives of the others, without anybody having annotated them. All other
voxels stay unlabelled. `complete` lets a sample decode some of these classes, after augmentation;
`losses.exclusion` is their loss. With `augment.cutmix` it also exchanges a box between images.

Random numbers are keyed by the sample, as in `train.augment`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.data.batch import Batch

_KEY = 0x0714  # folded into the key of a sample, so that these draws are independent of `augment`

# (batch after `augment`, key of the step, axis of pmap or None) → batch with D decodes per image
Complete = Callable[[Batch, jax.Array, str | None], Batch]


def make_complete(exclusive_KK: np.ndarray, decodes: int) -> Complete:
  """Returns the function that adds decodes of further classes to a batch.

  Args:
    exclusive_KK: bool, see `ClassTable.exclusive`.
    decodes: D, the classes to decode per image, at least the N of the batch and at most K. Those
      that the dataset annotates stay where they are. All others, with β = 0 before and after, are
      drawn anew and get the labels that `known` finds.
  """
  exclusive_KK = np.asarray(exclusive_KK, bool)

  def one(sample: Batch, key: jax.Array) -> Batch:
    exclusive = jnp.asarray(exclusive_KK)
    class_id = choose(sample, key, exclusive, decodes)
    mask, beta = known(class_id, sample, exclusive)
    return sample._replace(class_id=class_id, mask=mask, beta=beta)

  def complete(batch: Batch, key: jax.Array, axis_name: str | None) -> Batch:
    del axis_name  # no sample depends on another
    return jax.vmap(one)(batch, sample_keys(batch, key))

  return complete


def sample_keys(batch: Batch, key: jax.Array) -> jax.Array:
  """Returns the key of every sample for the draws of this module, [B]."""
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), _KEY))(batch.index)


def choose(sample: Batch, key: jax.Array, exclusive_KK: jax.Array, decodes: int) -> jax.Array:
  """Draws the classes to decode for one sample, all different, int32 [D].

  Annotated decodes stay. The others are drawn uniformly from the classes that an annotated one
  excludes; only if there are too few, from all.
  """
  annotated = sample.beta > 0
  classes = exclusive_KK.shape[0]
  taken_K = (annotated[:, None] & jax.nn.one_hot(sample.class_id, classes, dtype=bool)).any(0)
  excluded_K = (annotated[:, None] & exclusive_KK[sample.class_id]).any(0)
  score_K = (jax.random.uniform(key, (classes,)) + excluded_K.astype(jnp.float32)
             - 4 * taken_K.astype(jnp.float32))
  order_K = jnp.argsort(-score_K).astype(jnp.int32)
  further = decodes - sample.class_id.shape[0]
  free = jnp.pad(~annotated, (0, further), constant_values=True)
  place = jnp.cumsum(free) - 1
  return jnp.where(free, order_K[place], jnp.pad(sample.class_id, (0, further)))


def known(class_id_D: jax.Array, sample: Batch,
          exclusive_KK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what one sample tells about some classes: masks uint8 [*shape, D], and β [D].

  For a class that it annotates these are its mask and β. For any other class the mask is negative
  where an annotated class that excludes it is positive and unlabelled elsewhere, and β is 0.
  """
  axes = (1,) * (sample.mask.ndim - 1)
  annotated = sample.beta > 0
  mask = jnp.full((*sample.mask.shape[:-1], class_id_D.shape[0]), UNLABELLED, jnp.uint8)
  beta = jnp.zeros(class_id_D.shape, jnp.float32)
  for n in range(sample.mask.shape[-1]):
    excluded = annotated[n] & exclusive_KK[sample.class_id[n], class_id_D]
    negative = (sample.mask[..., n:n + 1] == POSITIVE) & excluded.reshape(*axes, -1)
    mask = jnp.where(negative, jnp.uint8(NEGATIVE), mask)
  for n in range(sample.mask.shape[-1]):
    own = annotated[n] & (class_id_D == sample.class_id[n])
    mask = jnp.where(own.reshape(*axes, -1), sample.mask[..., n:n + 1], mask)
    beta = jnp.where(own, sample.beta[n], beta)
  return mask, beta
