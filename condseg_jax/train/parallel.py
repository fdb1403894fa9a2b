"""The step over many devices, by jit over a mesh or by pmap; both give the same numbers."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError
from condseg_jax.train.step import TrainStep

AXIS = "data"


class Driver(NamedTuple):
  """How a step runs on the devices at hand.

  Attributes:
    place_state: puts a state where the step expects it.
    place_batch: puts this process's part of a batch, numpy arrays, where the step expects it.
    step: (state, batch) → (state, metrics).
  """

  place_state: Callable
  place_batch: Callable
  step: Callable


def make_driver(name: str, train_step: TrainStep, batch_size: int,
                accumulate: int = 1) -> Driver:
  """A driver by name, `jit` or `pmap`, for a step that takes a batch in so many parts.

  Raises:
    InputError: unknown name, or a batch that the devices and parts cannot share equally.
  """
  if name not in DRIVERS:
    raise InputError("train.driver", f"{name!r} is not known", f"one of {', '.join(DRIVERS)}",
                     usage=True)
  if batch_size % jax.device_count():
    raise InputError("data.batch_size", f"{batch_size} on {jax.device_count()} devices",
                     "choose a multiple of the number of devices", usage=True)
  if accumulate < 1 or batch_size // jax.device_count() % accumulate:
    raise InputError("train.grad_accum_steps", f"{accumulate} parts of a batch with "
                     f"{batch_size // jax.device_count()} samples on each device",
                     "choose a number that divides them", usage=True)
  return DRIVERS[name](train_step)


def jit_driver(train_step: TrainStep) -> Driver:
  """One program for all devices; the compiler adds the communication.

  The batch is split along a mesh axis, the state is replicated and its buffers are reused.
  """
  mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
  split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
  step = jax.jit(train_step, in_shardings=(whole, split), out_shardings=whole, donate_argnums=0)

  def place_state(state):
    placed = jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)),
                          state)
    # On CPU an array may share its memory with the numpy array it was made of. The step reuses the
    # state's buffers, so they must be its own.
    return jax.tree.map(jnp.copy, placed)

  def place_batch(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)

  return Driver(place_state, place_batch, step)


def pmap_driver(train_step: TrainStep) -> Driver:
  """One copy of the step per device, with explicit sums over them."""
  step = jax.pmap(functools.partial(train_step, axis_name=AXIS), AXIS, in_axes=(None, 0),
                  out_axes=(None, None))
  devices = jax.local_devices()
  mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
  split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())

  def place_batch(batch: Batch) -> Batch:
    parts = jax.tree.map(
        lambda x: x.reshape(len(devices), x.shape[0] // len(devices), *x.shape[1:]), batch)
    return jax.device_put(parts, split)

  return Driver(lambda state: jax.device_put(state, whole), place_batch, step)


DRIVERS = {"jit": jit_driver, "pmap": pmap_driver}
