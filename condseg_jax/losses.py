"""The training objective: loss terms over labelled voxels and their weighting by class.

Every term is per sample, so that its gradient does not depend on the other samples of the batch or
on how the batch is split over devices. Arrays are nD; N is the number of classes decoded per image.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.config import Loss
from condseg_jax.errors import InputError

Objective = Callable[[jax.Array, jax.Array], jax.Array]

BINS = 20  # of probability, for the calibration error
FEWEST = 100  # positive voxels: below, the shares of positives in the bins are noise


class Terms(NamedTuple):
  """Per-sample, per-class terms, each float32 [B, N].

  Attributes:
    dice: 1 - soft Dice.
    bce: mean binary cross-entropy.
  """

  dice: jax.Array
  bce: jax.Array


def terms(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array) -> Terms:
  """Computes loss terms over the labelled voxels.

  Soft Dice, with p the predicted probability, t the target and sums over labelled voxels:

      ℓ = 1 - 2 Σ p t / (Σ p + Σ t)

  For an empty target this is 1 for any p, so that nothing could be learned from an absent organ; in
  this case the same formula is applied to the complement (1 - p, 1 - t), which is 0 for a correct
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
  # softplus(z) - t z suffers cancellation for confident correct predictions.
  cross_entropy = jax.nn.softplus(jnp.where(target > 0, -logits, logits)) * labelled
  bce = cross_entropy.sum(1) / jnp.maximum(count, 1.0)
  return Terms(dice, bce)


def image_terms(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array, sharpness: float) -> Terms:
  """Computes loss terms from image-level labels: whether the class occurs in the image at all.

  The image's score is a smooth maximum of its n labelled logits (Pinheiro & Collobert, CVPR 2015),

      s = 1/r log( 1/n Σ exp(r z) ),

  their mean for r → 0 and their maximum for r → ∞; `bce` is its binary cross-entropy. The Dice term
  is undefined for an image-level label and set to 0; `bce` is 0 if no voxel is labelled.

  Args:
    logits_BDHWN: float32.
    mask_BDHWN: three-valued, the same shape.
    sharpness: r, above 0.
  """
  shape = (logits_BDHWN.shape[0], -1, logits_BDHWN.shape[-1])
  mask = mask_BDHWN.reshape(shape)
  labelled = mask != UNLABELLED
  count = labelled.sum(1).astype(jnp.float32)
  z = sharpness * logits_BDHWN.reshape(shape).astype(jnp.float32)
  greatest = jax.lax.stop_gradient(jnp.where(labelled, z, -jnp.inf).max(1))
  greatest = jnp.where(count > 0, greatest, 0.0)
  # Unlabelled logits are replaced before anything non-linear: 0 · inf would be NaN.
  summands = jnp.exp(jnp.where(labelled, z - greatest[:, None], 0.0)) * labelled.astype(jnp.float32)
  mean = jnp.where(count > 0, summands.sum(1) / jnp.maximum(count, 1.0), 1.0)
  score = (greatest + jnp.log(mean)) / sharpness
  present = (mask == POSITIVE).any(1)
  bce = jax.nn.softplus(jnp.where(present, -score, score))
  return Terms(jnp.zeros_like(bce), jnp.where(count > 0, bce, 0.0))


def dice_bce(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array, settings: Loss) -> jax.Array:
  """Returns soft Dice plus weighted BCE over labelled voxels, float32 [B, N]; see `terms`."""
  found = terms(logits_BDHWN, mask_BDHWN)
  return found.dice + settings.bce_weight * found.bce


def image_level(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array, settings: Loss) -> jax.Array:
  """Returns the loss of image-level supervision, float32 [B, N]; see `image_terms`."""
  return settings.bce_weight * image_terms(logits_BDHWN, mask_BDHWN, settings.lse_sharpness).bce


def calibration_error(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array) -> jax.Array:
  """Computes the average calibration error of each sample and class (mL1-ACE, arXiv:2506.03942).

  Over `BINS` bins of equal width in probability p, with their labelled voxels:

      ℓ = mean over non-empty bins of |mean p - share of positives|

  A voxel's bin has no gradient, the mean p of its bin has. ℓ is 0 for a sample with fewer than
  `FEWEST` positive voxels.

  Args:
    logits_BDHWN: float32.
    mask_BDHWN: three-valued, the same shape.

  Returns:
    float32 [B, N].
  """
  batch, classes = logits_BDHWN.shape[0], logits_BDHWN.shape[-1]
  mask = mask_BDHWN.reshape(batch, -1, classes)
  labelled = mask != UNLABELLED
  logits = logits_BDHWN.reshape(mask.shape).astype(jnp.float32)
  probability = jax.nn.sigmoid(jnp.where(labelled, logits, 0.0))
  bin_BVN = jnp.minimum((probability * BINS).astype(jnp.int32), BINS - 1)
  pair_B1N = jnp.arange(batch * classes).reshape(batch, 1, classes)

  def sums(values_BVN: jax.Array) -> jax.Array:
    weighted = jnp.where(labelled, values_BVN.astype(jnp.float32), 0.0)
    places = pair_B1N * BINS + bin_BVN
    flat = jax.ops.segment_sum(weighted.ravel(), places.ravel(), batch * classes * BINS)
    return flat.reshape(batch, classes, BINS)

  count = sums(jnp.ones_like(probability))
  positive = sums(mask == POSITIVE)
  distance = jnp.abs(sums(probability) - positive) / jnp.maximum(count, 1.0)
  error = distance.sum(-1) / jnp.maximum((count > 0).sum(-1), 1).astype(jnp.float32)
  return jnp.where(positive.sum(-1) >= FEWEST, error, 0.0)


def dice_bce_ace(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array, settings: Loss) -> jax.Array:
  """Returns `dice_bce` plus the calibration error, float32 [B, N]; see `calibration_error`."""
  return (dice_bce(logits_BDHWN, mask_BDHWN, settings)
          + calibration_error(logits_BDHWN, mask_BDHWN))


def marginal(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array, settings: Loss) -> jax.Array:
  """Returns `dice_bce` of the probability of a class among all of them, float32 [B, N].

  Unlabelled classes are marginalised out (as in Shi et al., Medical Image Analysis 2021): a voxel
  that is not of class a is background or any of the others, whichever it may be. See
  `against_others`, with N = K, all classes of the network: `RIVALS`.

  At voxels of class a this lowers all other classes in proportion to their probability; at voxels
  known not to be a it raises whichever other class is likely there already. A logit trained so has
  a meaning beside all others alone: σ(z_a), which is what a class asked for alone gets, is never
  below P(a) and above it wherever another class is likely, so that the class is over-segmented.
  Predict all classes together.
  """
  return dice_bce(against_others(logits_BDHWN), mask_BDHWN, settings)


def against_others(logits_BDHWN: jax.Array) -> jax.Array:
  """Returns the logit of the probability of each class where exactly one of them is true.

      logit P(a) = z_a - log(1 + Σ_{k≠a} exp z_k)

  for P the softmax over the N classes and background, whose logit is 0 (as `infer.fuse` with
  fusion "softmax").

  Args:
    logits_BDHWN: z, of classes that exclude each other.
  """
  z = jnp.moveaxis(logits_BDHWN, -1, 0)
  # Sums over the classes before and after each; in 1 + Σ_k exp z_k - exp z_a digits would cancel.
  before, after = [jnp.zeros_like(z[0])], [z[-1]]
  for k in range(len(z) - 1):
    before.append(jnp.logaddexp(before[-1], z[k]))
  for k in range(len(z) - 2, 0, -1):
    after.append(jnp.logaddexp(after[-1], z[k]))
  both = zip(before[:-1], reversed(after[:len(z) - 1]), strict=True)
  others = [*(jnp.logaddexp(b, a) for b, a in both), before[-1]]
  return jnp.stack([z[k] - others[k] for k in range(len(z))], -1)


# (logits_BDHWN, three-valued mask_BDHWN, settings) → the loss of every decode, float32 [B, N]. To
# add one, write a function and register it here: `config.loss.objective` selects it. Its gradient
# must be zero at voxels that are unlabelled for every class, and its value zero for a class without
# labelled voxels.
OBJECTIVES: dict[str, Callable[..., jax.Array]] = {
    "dice_bce": dice_bce, "dice_bce_ace": dice_bce_ace, "image_level": image_level,
    "marginal": marginal}
# Those that compare a class with all others: every class is decoded for every image, and no two
# may overlap.
RIVALS = {"marginal"}


def make_objective(settings: Loss) -> Objective:
  """Returns the objective of a config: (logits_BDHWN, mask_BDHWN) → loss of every decode, [B, N].

  Raises:
    InputError: the name is not in `OBJECTIVES`.
  """
  if settings.objective not in OBJECTIVES:
    raise InputError("loss.objective", f"{settings.objective!r} is not registered",
                     f"one of {', '.join(OBJECTIVES)}", usage=True)
  return functools.partial(OBJECTIVES[settings.objective], settings=settings)


def deep_loss(logits: Sequence[jax.Array], mask_BDHWN: jax.Array,
              objective: Objective) -> jax.Array:
  """Computes the loss of every decode over several decoder levels (deep supervision), [B, N].

      ℓ = Σ_l w_l ℓ_l,   w_l = 2^-l / Σ_m 2^-m

  with ℓ_l the loss of level l against the mask reduced to its grid; the weights halve from level to
  level, as in Isensee et al. (nnU-Net, Nature Methods 2021).

  Args:
    logits: one array per level, finest first, float32 [B, *shape of the level, N].
    mask_BDHWN: three-valued, at the finest level.
    objective: see `make_objective`.
  """
  per_level = [objective(logits[0], mask_BDHWN)]
  for level in logits[1:]:
    strides = [n // m for n, m in zip(mask_BDHWN.shape[1:-1], level.shape[1:-1], strict=True)]
    per_level.append(objective(level, reduce_mask(mask_BDHWN, strides)))
  if len(per_level) == 1:
    return per_level[0]
  weights = [2.0 ** -level for level in range(len(per_level))]
  weighted = [w / sum(weights) * loss_BN for w, loss_BN in zip(weights, per_level, strict=True)]
  return functools.reduce(jnp.add, weighted)


def exclusion(logits_BDHWN: jax.Array, mask_BDHWN: jax.Array, class_id_BN: jax.Array,
              beta_BN: jax.Array, alpha_K: jax.Array, *, weight: float,
              global_batch: int) -> jax.Array:
  """Computes the loss of decodes that no dataset annotates, on voxels of classes that exclude them.

      L = (λ/B) Σ_b 1/|U_b| Σ_{n ∈ U_b} α_c BCE_bn,   U_b the decodes of image b with β = 0

  with BCE as in `terms`: their labelled voxels are all negative (`train.unlabelled`), so that this
  is the mean of softplus(z) over the voxels known to be of another class. It is not computed for
  the levels of deep supervision, where a coarse voxel may be of both, and there is no Dice term: as
  a fraction of all voxels it would reward predictions of the class wherever nothing is known.

  Args:
    logits_BDHWN: of the finest level.
    mask_BDHWN: three-valued.
    class_id_BN: class of every decode.
    beta_BN: see `Batch`.
    alpha_K: α, the weight of every class.
    weight: λ.
    global_batch: B, see `total`.

  Returns:
    Scalar: the local part of the loss.
  """
  unannotated = (beta_BN == 0).astype(jnp.float32)
  share = unannotated / jnp.maximum(unannotated.sum(1, keepdims=True), 1.0)
  bce = terms(logits_BDHWN, mask_BDHWN).bce
  return total(bce, class_id_BN, weight * share, alpha_K, global_batch=global_batch)


def reduce_mask(mask_BDHWN: jax.Array, strides: Sequence[int]) -> jax.Array:
  """Reduces a three-valued mask to a coarser grid, one coarse voxel per block of fine voxels.

  The label is the majority of the labelled voxels in the block; positive wins ties. A coarse voxel
  is unlabelled if no voxel of its block is labelled. A class too thin to win any block is not
  treated as absent: if the fine mask has positive voxels and the coarse mask has none, the sample
  is unlabelled for that class.

  Args:
    mask_BDHWN: uint8.
    strides: block size per spatial axis; must divide the shape.

  Returns:
    uint8 [B, *shape / strides, N].
  """
  blocks = [mask_BDHWN.shape[0]]
  for size, stride in zip(mask_BDHWN.shape[1:-1], strides, strict=True):
    blocks += [size // stride, stride]
  within = tuple(range(2, len(blocks), 2))
  mask = mask_BDHWN.reshape(*blocks, mask_BDHWN.shape[-1])
  labelled = (mask != UNLABELLED).sum(within, dtype=jnp.int32)
  positive = (mask == POSITIVE).sum(within, dtype=jnp.int32)
  wins = (positive > 0) & (2 * positive >= labelled)
  axes = tuple(range(1, wins.ndim - 1))
  lost = positive.any(axes, keepdims=True) & ~wins.any(axes, keepdims=True)
  value = jnp.where(wins, jnp.uint8(POSITIVE), jnp.uint8(NEGATIVE))
  return jnp.where((labelled == 0) | lost, jnp.uint8(UNLABELLED), value)


def total(loss_BN: jax.Array, class_id_BN: jax.Array, beta_BN: jax.Array, alpha_K: jax.Array, *,
          global_batch: int) -> jax.Array:
  """Computes Eq. 4 of Dmitriev & Kaufman (CVPR 2019) in its per-sample form.

      L = (1/B) Σ_b Σ_n α_c β_bn ℓ_bn,   c the class of decode n

  Eq. 4 sums over the classes present in the batch, L = Σ_i α_i β_i L_i; dividing by the number of
  images B, and not by the number of annotated samples, makes the sum over devices equal to the loss
  of the whole batch: the number of annotated samples differs between devices.

  Args:
    loss_BN: ℓ, the loss of every decode of the local part of the batch.
    class_id_BN: class of every decode.
    beta_BN: weight of the mask, 0 without one; see `Batch`.
    alpha_K: α, the weight of every class.
    global_batch: B, the number of images over all devices.

  Returns:
    Scalar: the local part of the loss. The parts of all devices sum to L.
  """
  return (alpha_K[class_id_BN] * beta_BN * loss_BN).sum() / global_batch
