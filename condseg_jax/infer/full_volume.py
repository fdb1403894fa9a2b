"""Inference on a whole volume in one pass, split along its first axis over several devices.

Each device holds a share of the slices and of all activations. Before a convolution, neighbours
exchange their border slices, and normalisation statistics are summed over the devices (see
`models.halo`). The result equals that of the undivided network, gradients included.

Temporary memory per device as reported by XLA (`memory_analysis`, on CPU), for the network of
`base.py` on 256×128×128 voxels and one class:

    devices            1        2        4        8
    logits       2.77 GB  1.39 GB  0.70 GB  0.36 GB
    gradient    13.25 GB  6.67 GB  3.39 GB  1.75 GB
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.infer.sliding_window import Slab
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import class_logits

AXIS = "depth"
SPLIT = P(None, AXIS)


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
  """Returns a 1-D mesh in which consecutive devices are neighbours."""
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def partitioned_logits(model: DenseUNet, mesh: Mesh) -> Callable[..., jax.Array]:
  """Returns `class_logits` for volumes that are split over the devices of a mesh.

  Args:
    model: the network as trained, without a partition.
    mesh: from `make_mesh`.

  Returns:
    (variables, image_BDHWC, class_id_BN) → float32 [B, *shape, N]. D must be a multiple of the
    number of devices times the network's stride. In 2-D there is no D, and H is split.
  """
  logits = functools.partial(class_logits, model.clone(partition=AXIS))
  return jax.shard_map(logits, mesh=mesh, in_specs=(P(), SPLIT, P()), out_specs=SPLIT)


def full_volume_slabs(model: DenseUNet, variables: Mapping, image_DHWC: np.ndarray,
                      class_ids: Sequence[int], devices: Sequence[jax.Device] | None = None
                      ) -> Iterator[Slab]:
  """Computes the probability of every class at every voxel in one pass over the whole volume.

  The volume is encoded once, unless the encoder depends on the class, and decoded for one class at
  a time. Normalisation layers see the whole volume instead of a window of the training size; where
  the two differ much, sliding windows are the safer choice.

  Args:
    model: the network as trained.
    variables: of the network.
    image_DHWC: normalised image at the network's spacing; no D in 2-D. It is edge-padded to the
      next shape that divides evenly over the devices.
    class_ids: classes to decode.
    devices: devices to split the volume over; all of this process when None.

  Yields:
    One slab per class, each the whole volume.

  Raises:
    InputError: the network cannot be split.
  """
  if not isinstance(model, DenseUNet):
    raise InputError("partition", "a volume cannot be split over devices with a network of the "
                     f"kind {type(model).__name__}", "predict with windows", usage=True)
  try:
    model.clone(partition=AXIS).check()
  except ValueError as error:
    raise InputError("partition", str(error), "predict with windows", usage=True) from error
  devices = tuple(devices or jax.local_devices())
  mesh = make_mesh(devices)
  multiple = (len(devices) * model.stride[0], *model.stride[1:])
  missing = [-n % m for n, m in zip(image_DHWC.shape, multiple, strict=False)]
  padding = [(m // 2, m - m // 2) for m in missing]
  image = np.pad(image_DHWC, (*padding, (0, 0)), mode="edge")[None]
  image = jax.device_put(image, NamedSharding(mesh, SPLIT))
  variables = jax.device_put(variables, NamedSharding(mesh, P()))

  encode, decode = _compiled_halves(model, devices)
  inside = tuple(slice(low, low + n)
                 for (low, _), n in zip(padding, image_DHWC.shape, strict=False))
  whole_volume = tuple(slice(0, n) for n in image_DHWC.shape[:-1])
  features = None
  for class_id in class_ids:
    ids = np.array([class_id], np.int32)
    if features is None or model.encoder_sees_class:
      features = encode(variables, image, ids)
    probability = np.array(decode(variables, features, ids))[0][inside]
    yield Slab([class_id], whole_volume, probability[None])


@functools.lru_cache(maxsize=8)
def _compiled_halves(model: DenseUNet,
                     devices: tuple[jax.Device, ...]) -> tuple[Callable, Callable]:
  """Returns encoder and decoder for a split volume, compiled once per shape."""
  mesh, partitioned = make_mesh(devices), model.clone(partition=AXIS)

  def encode(variables, image, class_id_B):
    return partitioned.apply(variables, image, class_id_B, method=partitioned.encode)

  def decode(variables, features, class_id_B):
    logits = partitioned.apply(variables, features, class_id_B, method=partitioned.decode)
    return jax.nn.sigmoid(logits)

  return tuple(jax.jit(jax.shard_map(half, mesh=mesh, in_specs=(P(), SPLIT, P()), out_specs=SPLIT))
               for half in (encode, decode))
