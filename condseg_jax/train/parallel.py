"""Several devices and processes: the step by jit over a mesh or by pmap, and coordination."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import json
import logging
import re
from typing import NamedTuple
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from condseg_jax.data.batch import Batch
from condseg_jax.errors import InputError
from condseg_jax.models.conditioning import LAYERS
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import level_logits
from condseg_jax.models.network import Network
from condseg_jax.train.step import TrainStep

AXIS, DEPTH = "data", "depth"


class Driver(NamedTuple):
  """How a step runs on the devices at hand.

  Attributes:
    place_state: places a state on the devices as the step expects it.
    place_batch: places this process's part of a batch (numpy arrays) as the step expects it.
    place_steps: places the length of the run as the step expects it.
    step: (state, batch, length of the run in steps) → (state, metrics).
  """

  place_state: Callable
  place_batch: Callable
  place_steps: Callable
  step: Callable


def make_driver(name: str, train_step: TrainStep, batch_size: int, accumulate: int = 1,
                partition: int = 1) -> Driver:
  """Returns a driver for a step.

  Args:
    name: `jit` or `pmap`.
    train_step: the step.
    batch_size: images over all devices.
    accumulate: number of parts of a batch that it accumulates over.
    partition: number of devices that each image is split over, by a step with the logits of
      `partitioned_logits`; only by `jit`.

  Raises:
    InputError: unknown name, or a batch size not divisible over the devices and parts.
  """
  if name not in DRIVERS:
    raise InputError("train.driver", f"{name!r} is not known", f"one of {', '.join(DRIVERS)}",
                     usage=True)
  groups = jax.device_count() // partition
  what = "devices" if partition == 1 else "groups of devices"
  if batch_size % groups:
    raise InputError("data.batch_size", f"{batch_size} on {groups} {what}",
                     f"choose a multiple of the number of {what}", usage=True)
  if accumulate < 1 or batch_size // groups % accumulate:
    raise InputError("train.grad_accum_steps", f"{accumulate} parts of a batch with "
                     f"{batch_size // groups} samples on each of {groups} {what}",
                     "choose a number that divides them", usage=True)
  return jit_driver(train_step, partition) if name == "jit" else DRIVERS[name](train_step)


def make_mesh(partition: int = 1) -> Mesh:
  """Returns the mesh of all devices: a batch is divided along `AXIS`; with a partition there is a
  second axis, `DEPTH`, of neighbouring devices of one process that share an image."""
  if partition == 1:
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(devices).reshape(-1, partition), (AXIS, DEPTH),
              axis_types=(AxisType.Auto,) * 2)


def check_partition(partition: int, model: Network, subvolume: Sequence[int]) -> None:
  """Raises InputError if images cannot be split over a number of devices."""
  if partition == 1:
    return

  def refuse(reason: str, cure: str) -> NoReturn:
    raise InputError("train.partition", reason, cure, usage=True)

  local = jax.local_device_count()
  if local % partition:
    refuse(f"{partition} devices for an image, but a process has {local}", "choose a divisor")
  if subvolume[0] % (partition * model.stride[0]):
    refuse(f"{subvolume[0]} slices are not a multiple of {partition} × stride {model.stride[0]}",
           "choose another data.subvolume, or a smaller number")
  if not isinstance(model, DenseUNet):
    refuse(f"a network of the kind {type(model).__name__} cannot be split",
           "use model.network 'dense_unet'")
  if model.mechanism == "batch_norm" and model.position in LAYERS:
    refuse("excludes the mechanism 'batch_norm'", "use another mechanism")
  try:
    model.clone(partition=DEPTH).check()
  except ValueError as error:
    refuse(str(error), "use 1")


def possible_partitions(model: Network, subvolume: Sequence[int], batch_size: int) -> list[int]:
  """Returns over how many devices images can be split, ascending; [1] at least."""
  possible = []
  for partition in range(2, jax.local_device_count() + 1):
    with contextlib.suppress(InputError):
      check_partition(partition, model, subvolume)
      possible.append(partition)
  possible = [n for n in (1, *possible) if batch_size % (jax.device_count() // n) == 0]
  return possible or [1]


def partitioned_logits(partition: int) -> Callable:
  """Returns a replacement for `models.network.training_logits` that splits every image along its
  first spatial axis.

  Each device computes its slices of all activations, after an exchange of the slices at their
  borders (see `models.halo`); logits and gradients are those of the undivided image.
  """
  mesh, split = make_mesh(partition), P(AXIS, DEPTH)
  whole = NamedSharding(mesh, P(AXIS))

  def logits_of(model, variables, image_BDHWC, class_id_BN):
    # Every device of a group computes the augmentation of the whole image, which is small. Without
    # this constraint the compiler would split it as well, and round differently.
    image_BDHWC = jax.lax.with_sharding_constraint(image_BDHWC, whole)
    logits = functools.partial(level_logits, model.clone(partition=DEPTH))
    return jax.shard_map(logits, mesh=mesh, in_specs=(P(), split, P(AXIS)), out_specs=split)(
        variables, image_BDHWC, class_id_BN), {}

  return logits_of


def jit_driver(train_step: TrainStep, partition: int = 1) -> Driver:
  """Returns a driver with one program for all devices; the compiler inserts the communication.

  The batch is sharded along a mesh axis; the state is replicated and its buffers are donated.
  """
  mesh = make_mesh(partition)
  split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
  step = jax.jit(train_step, in_shardings=(whole, split, whole), out_shardings=whole,
                 donate_argnums=0)

  def place_state(state):
    placed = jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)),
                          state)
    # On CPU an array may share memory with the numpy array it was made from. The step donates the
    # state's buffers, so they must not be shared.
    return jax.tree.map(jnp.copy, placed)

  def place_batch(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)

  return Driver(place_state, place_batch, lambda steps: place_state(np.int32(steps)), step)


def pmap_driver(train_step: TrainStep) -> Driver:
  """Returns a driver with one copy of the step per device and explicit sums over devices."""
  step = jax.pmap(functools.partial(train_step, axis_name=AXIS), AXIS, in_axes=(None, 0, None),
                  out_axes=(None, None))
  devices = jax.local_devices()
  mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
  split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())

  def place_batch(batch: Batch) -> Batch:
    parts = jax.tree.map(
        lambda x: x.reshape(len(devices), x.shape[0] // len(devices), *x.shape[1:]), batch)
    return jax.device_put(parts, split)

  place = lambda tree: jax.device_put(tree, whole)
  return Driver(place, place_batch, lambda steps: place(np.int32(steps)), step)


DRIVERS = {"jit": jit_driver, "pmap": pmap_driver}


def join(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
  """Joins this process to a cluster; arguments that are None are auto-detected by JAX.

  JAX detects SLURM, Open MPI, Cloud TPU (with and without GKE) and, with the package `kubernetes`,
  indexed jobs of Kubernetes. From then on only the first process reports progress; all report
  errors.

  Args:
    coordinator: HOST:PORT of the first process, reachable from all.
    processes: number of processes.
    process_id: index of this process, from 0.

  Raises:
    InputError: no cluster was detected, or the other processes did not connect.
  """
  if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
    raise InputError("coordinator", f"{coordinator!r} is not HOST:PORT", "e.g. node1:12345",
                     usage=True)
  try:
    jax.distributed.initialize(coordinator, processes, process_id)
  except (ValueError, RuntimeError, OSError) as error:
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    missing = [f"`{name}`" for name, value in given.items() if value is None]
    if isinstance(error, ValueError) and missing:
      raise InputError("distributed", "found no cluster (SLURM, Open MPI, Cloud TPU, Kubernetes)",
                       f"give {', '.join(missing)}", usage=True) from error
    raise InputError("distributed", str(error).strip().splitlines()[0],
                     "check `coordinator`, `processes` and `process_id`, and that all processes "
                     "run", usage=isinstance(error, ValueError)) from error
  if jax.process_index() > 0:
    logging.getLogger("condseg_jax").setLevel(logging.WARNING)


def is_first() -> bool:
  """Returns whether this is the first process, which reports progress for all."""
  return jax.process_index() == 0


def share(items: Sequence) -> Sequence:
  """Returns this process's share of work that is divided among the processes."""
  return items[jax.process_index()::jax.process_count()]


def gather(rows: Sequence) -> list:
  """Returns the JSON-like rows of all processes, the same list in each. All must call it."""
  if jax.process_count() == 1:
    return list(rows)
  text = np.frombuffer(json.dumps(list(rows)).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(text.size, np.int32))
  padded = np.pad(text, (0, int(lengths.max()) - text.size))
  texts = multihost_utils.process_allgather(padded)
  return [row for text, n in zip(texts, lengths, strict=True)
          for row in json.loads(text[:n].tobytes())]


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
  """Lets the other processes enter once the first has left, to reuse its files on a shared disk."""
  first = jax.process_index() == 0
  if not first:
    multihost_utils.sync_global_devices("first process first")
  try:
    yield
  finally:
    if first and jax.process_count() > 1:
      multihost_utils.sync_global_devices("first process first")
