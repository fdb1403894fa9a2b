"""Our side of the benchmarks: forward pass and training step, compiled ahead of time."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from condseg_jax.config import Augment
from condseg_jax.config import Config
from condseg_jax.data.batch import Batch
from condseg_jax.losses import make_objective
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.train.parallel import DRIVERS
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step

NO_AUGMENTATION = Augment(rotate=0.0, zoom=0.0, shift=0.0, scale=0.0, offset=0.0, gamma=0.0,
                          noise=0.0)
CONSTANT = {"schedule": "constant", "warmup": 0}  # as the peer; irrelevant for the time


class Forward:
  """The forward pass; a call returns logits."""

  def __init__(self, model: DenseUNet, params: Mapping, image: np.ndarray, class_id: np.ndarray):
    self.arguments = jax.device_put(({"params": params}, image, class_id))
    self.compiled = jax.jit(model.apply).lower(*self.arguments).compile()

  def __call__(self) -> jax.Array:
    return self.compiled(*self.arguments)


class Step:
  """A training step without augmentation; a call returns loss and gradient norm.

  Every call continues from the state of the previous one. The batch stays on the device.

  Args:
    model: the network.
    params: initial parameters.
    config: of the training.
    arrays: image, class ids and mask.
    driver: `jit` or `pmap`.
  """

  def __init__(self, model: DenseUNet, params: Mapping, config: Config,
               arrays: Sequence[np.ndarray], driver: str = "jit"):
    optimizer = make_optimizer(dataclasses.replace(config.optimizer, **CONSTANT))
    train_step = make_train_step(
        model, optimizer, objective=make_objective(config.loss), augmentation=NO_AUGMENTATION,
        spacing=(1.0,) * model.ndim,
        lateral_axes=np.zeros((len(model.codes), model.ndim), bool),
        alpha_K=np.ones(len(model.codes)), ema_decay=0.0, seed=0)
    self.driver = DRIVERS[driver](train_step)
    state = TrainState.create({"params": params}, optimizer, ema=False)
    self.state = self.driver.place_state(state)
    self.batch = self.driver.place_batch(batch_of(*arrays))
    self.steps = self.driver.place_steps(1)
    # A pmap over several processes cannot be compiled ahead of time.
    self.compiled = self.driver.step if driver == "pmap" else (
        self.driver.step.lower(self.state, self.batch, self.steps).compile())

  def __call__(self) -> tuple[jax.Array, jax.Array]:
    self.state, metrics = self.compiled(self.state, self.batch, self.steps)
    return metrics["loss"], metrics["gradient_norm"]


def batch_of(image: np.ndarray, class_id: np.ndarray, mask: np.ndarray) -> Batch:
  """Returns a batch with one annotated class per image."""
  size = len(image)
  return Batch(image, class_id[:, None], mask[..., None], np.ones((size, 1), np.float32),
               np.arange(size, dtype=np.int32), np.zeros(size, np.int32))
