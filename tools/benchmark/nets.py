"""Networks of the configs for the benchmarks, with parameters, inputs and FLOP counts."""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from condseg_jax.config import Config
from condseg_jax.models.build import build_model
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.heads import head_layers
from condseg_jax.models.res_unet import ResUNet
from condseg_jax.models.unet import kind_and_level

# The networks of the committed rows, which stay comparable when the configs move on.
NORM = {"model": {"norm": "group", "dtype": "float32"}}
FIXED = {"hippocampus": {"model": {**NORM["model"], "channels": 8, "growth": 8}}}


def config_of(name: str, changes: Mapping[str, Mapping] | None = None) -> Config:
  """Loads a packaged config, with the network of the committed rows.

  Args:
    name: name of the config.
    changes: section → settings to change.
  """
  module = importlib.import_module(f"condseg_jax.configs.{name}")
  return Config.from_dict(module.get_config().to_dict()).override(
      {f"{section}.{key}": value for tree in (FIXED.get(name, NORM), changes or {})
       for section, fields in tree.items() for key, value in fields.items()})


def network(config: Config, classes: int = 2) -> DenseUNet:
  """Builds the network of a config.

  Args:
    config: the config.
    classes: number of classes.
  """
  codes = [float(c) for c in np.linspace(-1, 1, classes)] if classes > 1 else [0.5]
  return build_model(config.model, config.conditioning, codes)


def inputs(shape: Sequence[int], batch: int,
           classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a random image, class ids and masks with some unlabelled voxels.

  Args:
    shape: spatial shape.
    batch: number of images.
    classes: number of classes.
  """
  rng = np.random.default_rng(0)
  image = rng.normal(size=(batch, *shape, 1)).astype(np.float32)
  class_id = (np.arange(batch) % classes).astype(np.int32)
  mask = (rng.random((batch, *shape)) < 0.1).astype(np.uint8)
  mask[:, 0] = 255
  return image, class_id, mask


def parameter_shapes(model: DenseUNet | ResUNet, channels: int = 1) -> dict:
  """Returns the parameters of a network as shapes, without computing them.

  Args:
    model: the network.
    channels: image channels.
  """
  image = jax.ShapeDtypeStruct((1, *model.stride, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), image, ids)["params"]


def parameters(model: DenseUNet, channels: int = 1) -> dict:
  """Draws initial parameters in numpy, because `model.init` takes longer to compile than a step.

  Args:
    model: the network.
    channels: image channels.
  """
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    kind = path[-1].key
    if kind in ("bias", "scale"):
      return np.full(leaf.shape, kind == "scale", np.float32)
    # The fan-in of the kernel alone: the channels of the condition are few.
    fan_in = math.prod(leaf.shape[:-1]) if kind == "kernel" else 1
    return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, parameter_shapes(model, channels))


def work(params: Mapping, model: DenseUNet | ResUNet, shape: Sequence[int]) -> tuple[float, float]:
  """Counts the floating-point operations of `encode` and `decode` for one image and class.

  Two per weight of a kernel and voxel, independent of the lowering of a convolution. Norms,
  activations and the condition are not counted.

  Args:
    params: parameters of the network, or their shapes.
    model: the network.
    shape: spatial shape of the image.
  """
  voxels, last = _voxels(model, shape), _last_level(model)
  sums = {"encode": 0.0, "decode": 0.0}
  for name, tree in params.items():
    if kind_and_level(name) is None:
      continue
    kind, level = kind_and_level(name)
    late = kind == "head" or (kind in ("up", "merge") and level <= last)
    if kind == "head" and model.position == "output_head":  # kernels are generated for each class
      sums["decode"] += 2.0 * sum(map(math.prod, head_layers(model.channels))) * voxels[0]
      continue
    weights = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(tree)
                  if path[-1].key == "kernel" and "condition" not in jax.tree_util.keystr(path))
    # A transposed convolution reads the voxels of the coarser level.
    read = voxels[level + 1] if kind == "up" else voxels[level]
    sums["decode" if late else "encode"] += 2.0 * weights * read
  return sums["encode"], sums["decode"]


def classless_work(params: Mapping, model: DenseUNet, shape: Sequence[int]) -> float:
  """Counts the operations of `decode` that do not depend on the class.

  A convolution is a sum over its inputs; the terms of the skips, and at the coarsest conditioned
  level those of the upsampled features, are shared by all classes.

  Args:
    params: parameters of the network.
    model: the network.
    shape: spatial shape of the image.
  """
  voxels, last = _voxels(model, shape), _last_level(model)
  if last < 0:
    return 0.0
  total = 2.0 * params[f"up_{last}"]["kernel"].size * voxels[last + 1]
  for level in range(last + 1):
    free = model.channels * (level + 1) * (2 if level == last else 1)
    kernels = (layer["conv"]["kernel"] for layer in params[f"merge_{level}"].values())
    total += sum(2.0 * k.size // k.shape[-2] * free * voxels[level] for k in kernels)
  return total


def _voxels(model: DenseUNet | ResUNet, shape: Sequence[int]) -> list[int]:
  """Returns the number of voxels of every level, finest first."""
  voxels = [math.prod(shape)]
  for stride in model.strides:
    voxels.append(voxels[-1] // math.prod(stride))
  return voxels


def _last_level(model: DenseUNet | ResUNet) -> int:
  """Returns the coarsest decoder level that belongs to `decode`; -1 if only the head does."""
  if model.position == "output_head":
    return -1
  return len(model.layers_per_level) - 2 if model.from_level is None else model.from_level


def max_difference(ours: ArrayLike, theirs: ArrayLike) -> float:
  """Returns the largest absolute difference of two arrays or tensors of the same shape."""
  ours = np.asarray(ours)
  theirs = np.asarray(theirs.cpu() if hasattr(theirs, "cpu") else theirs)  # a tensor of the peer
  if ours.shape != theirs.shape:
    raise RuntimeError(f"outputs differ in shape: {ours.shape} and {theirs.shape}")
  return float(np.abs(ours - theirs).max())
