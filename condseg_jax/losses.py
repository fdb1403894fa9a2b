"""The objective: which voxels and which classes count, and how much.

Every term is per sample, so that its gradient does not depend on the other samples of the batch or
on how the batch is split over devices. Arrays are nD; N is the number of classes decoded per image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED


class Terms(NamedTuple):
  """Per-sample, per-class terms, each float32 [B, N].

  Attributes:
    dice: 1 - soft Dice.
    bce: mean binary cross-entropy.
  """

  dice: jax.Array
  bce: jax.Array


def terms(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array) -> Terms:
  """Loss terms over the labelled voxels.

  Soft Dice, with p the predicted probability, t the target and sums over labelled voxels:

      ℓ = 1 - 2 Σ p t / (Σ p + Σ t)

  Where the target is empty this is 1 whatever p is, so nothing could be learned from an absent
  organ; there the same formula is applied to the complement (1 - p, 1 - t), which is 0 for a right
  prediction and has a gradient of the same order. No smoothing constant is needed. Where no voxel
  is labelled, both terms and their gradients are exactly 0.

  Args:
    logits_BDHWN: float32.
    mask_BDHWN: three-valued, the same shape.
  """
  shape = (logits_BDHWN.shape[0], -1, logits_BDHWN.shape[-1])
  logits = logits_BDHWN.reshape(shape).astype(jnp.float32)
  mask = mask_BDHWN.reshape(shape)
  labelled = (mask != UNLABELLED).astype(jnp.float32)
  target = (mask == POSITIVE).astype(jnp.float32)

  # Unlabelled logits are replaced before anything non-linear: 0 · inf would be NaN.
  logits = jnp.where(labelled > 0, logits, 0.0)
  count = labelled.sum(1)
  positive = target.sum(1)
  probability = jax.nn.sigmoid(logits) * labelled
  overlap = (probability * target).sum(1)
  predicted = probability.sum(1)

  empty = positive == 0
  numerator = jnp.where(empty, 2 * (count - predicted), 2 * overlap)
  denominator = jnp.where(empty, (count - predicted) + count, predicted + positive)
  safe = jnp.where(count > 0, denominator, 1.0)
  dice = jnp.where(count > 0, 1 - numerator / safe, 0.0)

  # -t log σ(z) - (1 - t) log σ(-z): softplus(-z) where t = 1, softplus(z) where t = 0. The shorter
  # softplus(z) - t z would cancel where a prediction is sure and right.
  cross_entropy = jax.nn.softplus(jnp.where(target > 0, -logits, logits)) * labelled
  bce = cross_entropy.sum(1) / jnp.maximum(count, 1.0)
  return Terms(dice, bce)


def objective(per_sample: Terms, class_id_BN: jax.Array, beta_BN: jax.Array, alpha_K: jax.Array,
              *, bce_weight: float, global_batch: int) -> jax.Array:
  """Eq. 4 of Dmitriev & Kaufman (CVPR 2019) in its per-sample form.

      L = (1/B) Σ_b Σ_n α_c β_bn ℓ_bn,   c the class of decode n,   ℓ = Dice term + w · BCE term

  Eq. 4 sums over the classes present in the batch, L = Σ_i α_i β_i L_i; dividing by the number of
  images B, and not by the number of annotated samples, makes the sum over devices equal to the loss
  of the whole batch: the number of annotated samples differs between devices.

  Args:
    per_sample: of the local part of the batch.
    class_id_BN: class of every decode.
    beta_BN: 1 where the sample's dataset annotates that class, else 0.
    alpha_K: weight of every class.
    bce_weight: w; 0 for the Dice of the paper alone.
    global_batch: B, the number of images over all devices.

  Returns:
    Scalar: the local part of the loss. The parts of all devices add up to L.
  """
  loss_BN = per_sample.dice + bce_weight * per_sample.bce
  return (alpha_K[class_id_BN] * beta_BN * loss_BN).sum() / global_batch
