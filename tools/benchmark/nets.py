"""What is timed: the networks of the configs, with parameters and inputs, and the work they are."""

from collections.abc import Mapping
from collections.abc import Sequence
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.config import Config
from condseg_jax.models.build import build_model
from condseg_jax.models.conditioning import head_layers
from condseg_jax.models.dense_unet import DenseUNet


def config_of(name: str, changes: Mapping[str, Mapping] | None = None) -> Config:
  """A packaged config by name, with some settings of its sections changed."""
  module = importlib.import_module(f"condseg_jax.configs.{name}")
  return Config.from_dict(module.get_config().to_dict()).override(
      {f"{section}.{key}": value for section, fields in (changes or {}).items()
       for key, value in fields.items()})


def network(config: Config, classes: int = 2) -> DenseUNet:
  """The network of a config, for so many classes."""
  codes = [float(c) for c in np.linspace(-1, 1, classes)] if classes > 1 else [0.5]
  return build_model(config.model, config.conditioning, codes)


def inputs(shape: Sequence[int], batch: int, classes: int = 2):
  """Noise, class ids and masks of a blob, with some voxels unlabelled: numpy arrays."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(batch, *shape, 1)).astype(np.float32)
  class_id = (np.arange(batch) % classes).astype(np.int32)
  mask = (rng.random((batch, *shape)) < 0.1).astype(np.uint8)
  mask[:, 0] = 255
  return image, class_id, mask


def parameters(model: DenseUNet, channels: int = 1):
  """Parameters as at the start of a training, numpy arrays.

  Drawn here and not by `model.init`, which takes longer to compile than a step does.
  """
  image = jax.ShapeDtypeStruct((1, *model.stride, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, ids)["params"]
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    kind = path[-1].key
    if kind in ("bias", "scale"):
      return np.full(leaf.shape, kind == "scale", np.float32)
    # The deviation of a kernel is that of its own fan-in: channels of the condition are few.
    fan_in = math.prod(leaf.shape[:-1]) if kind == "kernel" else 1
    return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, shapes)


def work(params: Mapping, model: DenseUNet, shape: Sequence[int]) -> tuple[float, float]:
  """Floating-point operations of `encode` and of `decode` for one image and class.

  Counted from the kernels, two for each of their weights and every voxel that they meet, however
  the platform carries a convolution out. Norms, activations and the condition are left out.
  """
  voxels, last = _voxels(model, shape), _last_level(model)
  sums = {"encode": 0.0, "decode": 0.0}
  for module, tree in params.items():
    kind, _, number = module.partition("_")
    if kind not in ("stem", "down", "up", "merge", "head"):
      continue
    level = int(number or 0)
    late = kind == "head" or (kind in ("up", "merge") and level <= last)
    if kind == "head" and model.position == "head":  # its kernels are written for each class
      sums["decode"] += 2.0 * sum(map(math.prod, head_layers(model.channels))) * voxels[0]
      continue
    weights = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(tree)
                  if path[-1].key == "kernel" and "condition" not in jax.tree_util.keystr(path))
    # A transposed convolution meets the coarser level's voxels.
    met = voxels[level + 1] if kind == "up" else voxels[level]
    sums["decode" if late else "encode"] += 2.0 * weights * met
  return sums["encode"], sums["decode"]


def classless_work(params: Mapping, model: DenseUNet, shape: Sequence[int]) -> float:
  """The part of the operations of `decode` that no class has a say in, so that K share it.

  A convolution is a sum over its inputs: that of the skips everywhere, and at the first level that
  sees the class that of the upsampled features too.
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


def _voxels(model: DenseUNet, shape: Sequence[int]) -> list[int]:
  """Of every level, finest first."""
  voxels = [math.prod(shape)]
  for stride in model.strides:
    voxels.append(voxels[-1] // math.prod(stride))
  return voxels


def _last_level(model: DenseUNet) -> int:
  """The coarsest level of the decoder that belongs to `decode`; -1 where only the head does."""
  if model.position == "head":
    return -1
  return len(model.depth) - 2 if model.from_level is None else model.from_level


def max_difference(ours, theirs) -> float:
  """The largest difference of two arrays of one shape."""
  ours = np.asarray(ours)
  theirs = np.asarray(theirs.cpu() if hasattr(theirs, "cpu") else theirs)  # a tensor of the peer
  if ours.shape != theirs.shape:
    raise RuntimeError(f"shapes {ours.shape} and {theirs.shape} are to be the same output")
  return float(np.abs(ours - theirs).max())
