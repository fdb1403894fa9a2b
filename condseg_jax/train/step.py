"""One training step, a pure function."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from condseg_jax import losses
from condseg_jax.config import Augment
from condseg_jax.data.batch import Batch
from condseg_jax.models.network import level_logits
from condseg_jax.models.network import Network
from condseg_jax.models.network import training_logits
from condseg_jax.train.augment import augment
from condseg_jax.train.state import TrainState
from condseg_jax.train.state import variables

EMA_LAG = 10.0  # see `make_train_step`

# (state, batch, steps=None, *, axis_name=None) → (state, metrics)
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(model: Network, optimizer: optax.GradientTransformation, *,
                    objective: losses.Objective, augmentation: Augment,
                    spacing: tuple[float, ...], lateral_axes, alpha_K, ema_decay: float, seed: int,
                    grad_accum_steps: int = 1,
                    complete: Callable[..., Batch] | None = None,
                    exclusion_weight: float = 0.0, learned=None,
                    logits_of: Callable = training_logits) -> TrainStep:
  """Builds the train step.

  Args:
    model: the network.
    optimizer: the optimizer; its `update` may take the length of the run as `steps`.
    objective: see `losses.make_objective`.
    augmentation: settings of `augment`.
    spacing: see `augment`.
    lateral_axes: see `augment`.
    alpha_K: weight α of every class.
    ema_decay: decay d of the averaged parameters, used if the state holds them. At step t it is
      min(d, (1 + t) / (10 + t)), so that the average of a short run is not one of its random
      initialisation.
    seed: seed of the run's random keys.
    grad_accum_steps: number of equal parts of a batch that are processed in sequence, with the
      activations of one part in memory. The result is equal up to rounding, since the loss is a
      sum over samples.
    complete: adds labels of further classes, see `train.unlabelled`.
    exclusion_weight: weight λ of `losses.exclusion`; with 0 it is not computed.
    learned: which entries of the parameters are learned: a tree as theirs of NumPy arrays of bool
      that broadcast to them. All other entries, their moving average and the batch statistics,
      which are then applied as in prediction, stay as they are bit by bit. None for all.
    logits_of: computes `training_logits`, e.g. on parts of each image; not used with `learned`.

  Returns:
    `train_step(state, batch, steps=None, *, axis_name=None)`, with the length of the run for
    optimizers that need it: as an argument it can be decided once the compiled step was timed.
    Without an axis name the batch is the global one (jit shards it); with one it is a device's part
    and sums are taken over that axis (pmap). Both give the same state. The metrics are arrays:
    `loss`, `gradient_norm`, `skipped` and, per class, the sum of soft Dice over the annotated
    decodes `dice_K` and their number `count_K`; pseudo-masks, with β below 1, are not counted.
  """
  optimizer = optax.with_extra_args_support(optimizer)
  # Kept as NumPy until traced: an array on the device would be fetched for every compilation, a
  # transfer that the loop forbids.
  alpha_K = np.asarray(alpha_K, np.float32)
  lateral_axes = np.asarray(lateral_axes, bool)

  def augmented(batch: Batch, key) -> Batch:
    return augment(batch, key, augmentation, spacing, jnp.asarray(lateral_axes))

  def gradient_and_sums(params, statistics, model, batch: Batch, key, global_batch: int):
    """Returns the contribution of samples to gradient, loss and Dice, and the statistics."""
    if complete is None:
      batch = augmented(batch, key)

    def loss_function(params):
      if learned is None:
        logits, changed = logits_of(model, variables(params, statistics), batch.image,
                                    batch.class_id)
      else:  # without arrays that stay as they are, there is nothing to propagate to the encoder
        params = jax.tree.map(lambda p, own: p if own.any() else jax.lax.stop_gradient(p), params,
                              learned)
        logits, changed = level_logits(model, variables(params, statistics), batch.image,
                                       batch.class_id), {}
      loss_BN = losses.deep_loss(logits, batch.mask, objective)
      loss = losses.total(loss_BN, batch.class_id, batch.beta, jnp.asarray(alpha_K),
                          global_batch=global_batch)
      if exclusion_weight:
        loss += losses.exclusion(logits[0], batch.mask, batch.class_id, batch.beta,
                                 jnp.asarray(alpha_K), weight=exclusion_weight,
                                 global_batch=global_batch)
      # Measured for every objective; if it has the same terms, XLA computes them once.
      finest = losses.terms(jax.lax.stop_gradient(logits[0]), batch.mask)
      return loss, (finest.dice, changed.get("statistics"))

    (loss, (dice_BN, changed)), gradient = jax.value_and_grad(loss_function, has_aux=True)(params)
    ids, annotated = batch.class_id.reshape(-1), (batch.beta.reshape(-1) == 1).astype(jnp.float32)
    classes = alpha_K.shape[0]
    return gradient, {
        "loss": loss,
        "dice_K": jax.ops.segment_sum(annotated * (1 - dice_BN.reshape(-1)), ids, classes),
        "count_K": jax.ops.segment_sum(annotated, ids, classes),
    }, changed

  def train_step(state: TrainState, batch: Batch, steps=None, *, axis_name: str | None = None):
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    global_batch = batch.image.shape[0] * devices
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    here = model if axis_name is None else model.clone(batch_axes=(axis_name,))
    contribution = lambda batch: gradient_and_sums(
        state.params, state.statistics, here, batch, key, global_batch)
    if complete is not None:  # it may look at other samples, so before the batch is divided
      batch = complete(augmented(batch, key), key, axis_name)
    gradient, sums, statistics = _sum_over_parts(contribution, batch, grad_accum_steps)
    if axis_name is not None:
      gradient, sums = jax.lax.psum((gradient, sums), axis_name)

    if learned is not None:
      gradient = jax.tree.map(lambda g, own: jnp.where(own, g, 0.0), gradient, learned)
      statistics = state.statistics
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
    # optax mixes Python numbers with its int32 counters, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
      updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, steps=steps)
    params = optax.apply_updates(state.params, updates)
    keep = functools.partial(jnp.where, finite)
    params = jax.tree.map(keep, params, state.params)
    opt_state = jax.tree.map(keep, opt_state, state.opt_state)
    ema = state.ema
    if ema is not None:
      t = state.step.astype(jnp.float32)
      decay = jnp.minimum(ema_decay, (1.0 + t) / (EMA_LAG + t))
      ema = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, ema, params)
    statistics = jax.tree.map(keep, statistics, state.statistics)
    if learned is not None:  # neither weight decay nor the rounding of an average moves the rest
      own = functools.partial(jax.tree.map, jnp.where, learned)
      params, ema = own(params, state.params), None if ema is None else own(ema, state.ema)
    state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema,
                       statistics=statistics, skipped=state.skipped + (~finite).astype(jnp.int32))
    return state, {**sums, "gradient_norm": norm, "skipped": state.skipped}

  return train_step


def _sum_over_parts(contribution: Callable, batch: Batch, parts: int):
  """Sums a function of samples over equal parts of a batch, with one part in memory at a time."""
  if parts == 1:
    return contribution(batch)
  # Every part takes strided samples, so that each device processes only its own samples.
  batch = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch)
  shapes = jax.eval_shape(contribution, jax.tree.map(lambda x: x[0], batch))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  add = lambda total, part: (jax.tree.map(jnp.add, total, contribution(part)), None)
  return jax.lax.scan(add, zeros, batch)[0]
