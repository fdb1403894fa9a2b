"""Estimates the memory of a training step and of a prediction without compiling them."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
import os
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax

from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.models.network import Network
from condseg_jax.models.network import smallest_inputs
from condseg_jax.models.network import variable_shapes
from condseg_jax.models.unet import BLOCK_KINDS
from condseg_jax.models.unet import kind_and_level

# Peak of a step relative to the summed outputs of all modules, rounded up. XLA's memory analysis of
# whole steps on CPU (1 and 4 classes, 1 and 2 accumulation steps, deep supervision, several
# positions of the condition) is 1.64 to 1.97 times that sum in 3-D and 0.87 to 1.1 times in 2-D, so
# the estimate is 1.03 to 1.22 times the true peak in 3-D and 1.8 to 2.3 times in 2-D. That is for
# convolutions in plain JAX and `DenseUNet`; `ResUNet` takes 2.08 times the sum in 3-D. With oneDNN,
# XLA counts 0.71 to 0.83 times the sum for both in 3-D, without the scratch of oneDNN. On an H100
# (2 x 128^3, float32, six levels) it was 0.77 of a sum that counted every normalisation twice,
# about 1.0 of this one.
PEAK = {"cpu": 2.0, "gpu": 1.25, "tpu": 1.25}

# How far the estimate of a training step can lie above the true peak (2.3 in 2-D, and up to 2.9
# where oneDNN computes the convolutions): what is larger than memory by more than this cannot fit.
OVERESTIMATE = 3.0

# The same for a forward pass: XLA's memory analysis on CPU is 0.41 to 0.52 in 3-D and 0.25 to 0.31
# in 2-D, for one class and for eight.
FORWARD_PEAK = 0.55


def device_bytes() -> int:
  """Returns the memory of a device; on a CPU, that of the machine or of the process's cgroup."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  try:
    return min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text()))
  except (OSError, ValueError):  # no cgroup, or "max"
    return limit


class Outputs(NamedTuple):
  """Bytes of the module outputs for one image of the shape of the stride.

  Attributes:
    kept: outputs of blocks and of the modules between them.
    inside: per block, the outputs of the layers inside it.
  """

  kept: int
  inside: tuple[int, ...]


def training_bytes(model: Network, subvolume: Sequence[int], channels: int, batch_size: int,
                   classes_per_image: int = 1, *, accumulate: int = 1,
                   platform: str | None = None) -> int:
  """Estimates the peak memory of a training step on one device, in bytes.

  Args:
    model: the network.
    subvolume: spatial shape of an input; a multiple of `model.stride`.
    channels: image channels.
    batch_size: images on the device.
    classes_per_image: decodes per image; `encode` counts once.
    accumulate: gradient accumulation steps that the batch is split into.
    platform: `cpu`, `gpu` or `tpu`; None for the default backend.
  """
  variables, once, per_class = _outputs(model, channels)
  if model.encoder_sees_class:
    once, per_class = Outputs(0, ()), Outputs(once.kept + per_class.kept,
                                              once.inside + per_class.inside)
  n, platform = classes_per_image, platform or jax.default_backend()
  blocks = [*once.inside, *(n * size for size in per_class.inside)]
  # With remat, one block at a time holds the outputs of its layers. On CPU, XLA drops the barriers
  # that delay recomputation until the gradient needs it, so nothing is saved.
  recomputes = getattr(model, "remat", False) and platform != "cpu"
  outputs = once.kept + n * per_class.kept + (max(blocks) if recomputes else sum(blocks))
  images = -(-batch_size // accumulate)
  units = math.prod(subvolume) / math.prod(model.stride) * images
  # Parameters, their gradient, the two moments of Adam, and the accumulated gradient if any.
  copies = 4 + (accumulate > 1)
  fixed = copies * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
  return int(PEAK[platform] * outputs * units) + fixed


def prediction_bytes(model: Network, window: Sequence[int], channels: int,
                     window_batch: int = 1) -> int:
  """Estimates the memory of a batch of windows in `infer.sliding_window`, in bytes, without output.

  Classes are decoded one after the other, as on a CPU.

  Args:
    model: the network.
    window: spatial shape; a multiple of `model.stride`.
    channels: image channels.
    window_batch: windows per call.
  """
  _, once, per_class = _outputs(model, channels)
  outputs = once.kept + per_class.kept + sum(once.inside) + sum(per_class.inside)
  units = math.prod(window) / math.prod(model.stride) * window_batch
  return int(FORWARD_PEAK * outputs * units)


@functools.lru_cache(maxsize=64)
def _outputs(model: Network, channels: int) -> tuple[Mapping, Outputs, Outputs]:
  """Returns shapes of the variables, and the outputs of `encode` and `decode`.

  For an image of the shape of the stride, the smallest input: activations are proportional to the
  number of voxels.
  """
  if getattr(model, "remat", False):
    model = model.clone(remat=False)
  image, ids = smallest_inputs(model, channels)
  capture: dict[str, Any] = dict(capture_intermediates=True, mutable=["intermediates"])
  variables = applied = variable_shapes(model, channels)
  if isinstance(model, DenseUNet) and model.position == "per_class_decoders":
    # A sample passes through one of the decoders.
    model = model.clone(position="none", from_level=None)
    applied = variable_shapes(model, channels)
  features, encoded = jax.eval_shape(
      lambda v, x, i: model.apply(v, x, i, method=model.encode, **capture), applied, image, ids)
  _, decoded = jax.eval_shape(
      lambda v, f, i: model.apply(v, f, i, method=model.decode_levels, **capture), applied,
      features, ids)
  return variables, _sizes(encoded["intermediates"]), _sizes(decoded["intermediates"])


def _sizes(captured: Mapping) -> Outputs:
  kept, inside = 0, list[int]()
  for name, tree in captured.items():
    total, own = _bytes(tree), _bytes(tree.get("__call__", ()))
    kind, _ = kind_and_level(name) or ("", 0)
    if kind in BLOCK_KINDS:
      kept, inside = kept + own, [*inside, total - own]
    else:
      kept += total
  return Outputs(kept, tuple(inside))


def _bytes(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
