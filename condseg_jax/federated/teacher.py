"""Conditional distillation: the global network teaches the classes that a site does not annotate.

After ConDistFL (Wang et al., MICCAI workshop DeCaF 2023, arXiv 2308.04070). There, soft predictions
of the global network are matched outside of what a site annotates. Here they become a three-valued
mask, as every mask in this program: the Dice term is not defined for soft targets, and a voxel of
which the global network is not sure teaches nothing.
"""

from collections.abc import Callable
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.data.batch import Batch
from condseg_jax.models.network import class_logits
from condseg_jax.models.network import Network
from condseg_jax.pseudo.rules import Rules

# (variables, batch, classes that it may teach, random numbers) → batch with one more decode
Teach = Callable[..., Batch]


def make_teach(model: Network, table: ClassTable, weight: float) -> Teach:
  """Returns the function that adds a class taught by the global network to every sample.

  Args:
    model: the network.
    table: its classes.
    weight: β of the taught masks, below 1, which is that of annotated ones; their thresholds are
      those of `Rules`.
  """
  exclusive_KK, rules = np.asarray(table.exclusive), Rules()

  @jax.jit
  def masks(variables, image_BDHWC, taught_B1, class_id_BN, mask_BDHWN, beta_BN):
    logits = class_logits(model, variables, image_BDHWC, taught_B1)
    mask = jnp.full(logits.shape, UNLABELLED, jnp.uint8)
    probability = jax.nn.sigmoid(logits)
    mask = jnp.where(probability >= rules.positive, jnp.uint8(POSITIVE), mask)
    mask = jnp.where(probability <= rules.negative, jnp.uint8(NEGATIVE), mask)
    # What the site annotates decides.
    excludes_BN = jnp.asarray(exclusive_KK)[taught_B1, class_id_BN] & (beta_BN == 1)
    spread = (slice(None), *[None] * (image_BDHWC.ndim - 2))
    annotated = ((mask_BDHWN == POSITIVE) & excludes_BN[spread]).any(-1, keepdims=True)
    return jnp.where(annotated, jnp.uint8(NEGATIVE), mask)

  def teach(variables, batch: Batch, names: Collection[str], rng: np.random.Generator) -> Batch:
    allowed = {table.index(name) for name in names}
    taught_B1 = np.zeros((len(batch.index), 1), np.int32)
    beta_B1 = np.zeros((len(batch.index), 1), np.float32)
    for b, own in enumerate(batch.class_id):
      annotated = {int(k) for k, beta in zip(own, batch.beta[b], strict=True) if beta}
      others = sorted(allowed - annotated)
      taught_B1[b], beta_B1[b] = (rng.choice(others), weight) if others else (own[0], 0.0)
    more = np.asarray(masks(variables, batch.image, taught_B1, batch.class_id, batch.mask,
                            batch.beta))
    more = np.where(beta_B1[(slice(None), *[None] * (batch.image.ndim - 2))] > 0, more,
                    np.uint8(UNLABELLED))
    return batch._replace(class_id=np.concatenate([batch.class_id, taught_B1], 1),
                          mask=np.concatenate([batch.mask, more], -1),
                          beta=np.concatenate([batch.beta, beta_B1], 1))

  return teach
