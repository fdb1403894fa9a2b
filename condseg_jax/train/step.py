"""One training step, a pure function."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from condseg_jax import losses
from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import training_logits
from condseg_jax.train.augment import augment
from condseg_jax.train.augment import Augmentation
from condseg_jax.train.state import TrainState
from condseg_jax.train.state import variables

SUPERVISIONS = ("voxels", "image")

# (state, batch, *, axis_name=None) → (state, metrics)
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(model: DenseUNet, optimizer: optax.GradientTransformation, *,
                    augmentation: Augmentation, spacing: tuple[float, ...], lateral_axes,
                    alpha_K, bce_weight: float, ema_decay: float, seed: int,
                    accumulate: int = 1, supervision: str = "voxels",
                    sharpness: float = 5.0) -> TrainStep:
  """Binds what does not change during a run.

  Args:
    model: the network.
    optimizer: the update rule.
    augmentation, spacing, may_not_mirror: see `augment`.
    alpha_K: α of every class.
    bce_weight: see `losses.objective`.
    ema_decay: of the averaged parameters, used where the state holds them.
    seed: of the run's randomness.
    accumulate: equal parts that a batch is taken in, one after the other; memory holds the
      activations of one. The state is the same to rounding, since the loss is a sum over samples.
    supervision: `voxels`, every labelled voxel says what it is; `image`, a mask says whether the
      class is anywhere in the subvolume and no more. Its Dice is measured all the same.
    sharpness: of the maximum over an image, see `losses.image_terms`.

  Raises:
    InputError: a supervision or sharpness that there is not.

  Returns:
    `train_step(state, batch, *, axis_name=None)`. Without an axis name the batch is the global one
    (jit shards it); with one it is a device's part and the sums are taken over that axis (pmap).
    Both give the same state. The metrics are arrays: `loss`, `gradient_norm`, `skipped` and, per
    class, the sum of soft Dice over the annotated decodes `dice_K` and their number `count_K`.
  """
  # Numpy until they are traced: an array on the device would be fetched for every compilation, a
  # transfer that the loop forbids.
  alpha_K = np.asarray(alpha_K, np.float32)
  if supervision not in SUPERVISIONS:
    raise InputError("loss.supervision", f"{supervision!r} is not known",
                     f"one of {', '.join(SUPERVISIONS)}", usage=True)
  if not sharpness > 0:
    raise InputError("loss.sharpness", f"{sharpness:g} is not above 0", "5 is usual", usage=True)
  measure = losses.terms
  if supervision == "image":
    measure = functools.partial(losses.image_terms, sharpness=sharpness)
  lateral_axes = np.asarray(lateral_axes, bool)

  def gradient_and_sums(params, statistics, model, batch: Batch, key, global_batch: int):
    """What some samples of a batch contribute to its gradient, loss and Dice; the statistics."""
    batch = augment(batch, key, augmentation, spacing, jnp.asarray(lateral_axes))

    def loss_function(params):
      logits, changed = training_logits(model, variables(params, statistics), batch.image,
                                        batch.class_id)
      per_sample, finest = losses.deep_terms(logits, batch.mask, measure)
      if supervision == "image":
        finest = losses.terms(jax.lax.stop_gradient(logits[0]), batch.mask)
      loss = losses.objective(per_sample, batch.class_id, batch.beta, jnp.asarray(alpha_K),
                              bce_weight=bce_weight, global_batch=global_batch)
      return loss, (finest.dice, changed.get("statistics"))

    (loss, (dice_BN, changed)), gradient = jax.value_and_grad(loss_function, has_aux=True)(params)
    ids, beta = batch.class_id.reshape(-1), batch.beta.reshape(-1)
    classes = alpha_K.shape[0]
    return gradient, {
        "loss": loss,
        "dice_K": jax.ops.segment_sum(beta * (1 - dice_BN.reshape(-1)), ids, classes),
        "count_K": jax.ops.segment_sum(beta, ids, classes),
    }, changed

  def train_step(state: TrainState, batch: Batch, *, axis_name: str | None = None):
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    here = model if axis_name is None else model.clone(batch_axes=(axis_name,))
    contribution = lambda batch: gradient_and_sums(
        state.params, state.statistics, here, batch, key, global_batch)
    global_batch = batch.image.shape[0] * devices
    gradient, sums, statistics = _add_up(contribution, batch, accumulate)
    if axis_name is not None:
      gradient, sums = jax.lax.psum((gradient, sums), axis_name)

    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
    # optax mixes Python numbers with its int32 counters, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
      updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = functools.partial(jnp.where, finite)
    params = jax.tree.map(keep, params, state.params)
    opt_state = jax.tree.map(keep, opt_state, state.opt_state)
    ema = state.ema
    if ema is not None:
      ema = jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, ema, params)
    statistics = jax.tree.map(keep, statistics, state.statistics)
    state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema,
                       statistics=statistics, skipped=state.skipped + (~finite).astype(jnp.int32))
    return state, {**sums, "gradient_norm": norm, "skipped": state.skipped}

  return train_step


def _add_up(contribution: Callable, batch: Batch, parts: int):
  """The sum of a function of samples over equal parts of a batch, one part in memory at a time."""
  if parts == 1:
    return contribution(batch)
  # Every part takes samples from the whole batch, so that each device keeps to its own of them.
  batch = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch)
  shapes = jax.eval_shape(contribution, jax.tree.map(lambda x: x[0], batch))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  add = lambda total, part: (jax.tree.map(jnp.add, total, contribution(part)), None)
  return jax.lax.scan(add, zeros, batch)[0]
