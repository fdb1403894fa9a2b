"""How much memory a training step or a window of prediction takes, before one is compiled."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from condseg_jax.models.dense_unet import DenseUNet

# Peak of a step as a part of the sum of all modules' outputs. XLA's own account of whole steps on
# CPU (1 and 4 classes, 1 and 2 parts, deep supervision, other positions of the condition) is 1.64
# to 1.97 times that sum in 3-D and 0.87 to 1.1 times in 2-D: the estimate is 1.03 to 1.22 times
# what is taken in 3-D, 1.8 to 2.3 times in 2-D. On an H100 (2 x 128^3, float32, six levels) 0.77 of
# a sum that counted every normalisation twice, about 1.0 of this one. Rounded up.
PEAK = {"cpu": 2.0, "gpu": 1.25, "tpu": 1.25}

# Peak of a forward pass as a part of the same sum: XLA's account on CPU is 0.41 to 0.52 in 3-D and
# 0.25 to 0.31 in 2-D, for one class and for eight.
FORWARD_PEAK = 0.55


class Outputs(NamedTuple):
  """Bytes of the outputs of a network's modules, for one image.

  Attributes:
    kept: of the modules between the blocks, and of the blocks as a whole.
    inside: of the layers inside of every block.
  """

  kept: int
  inside: tuple[int, ...]


def training_bytes(model: DenseUNet, subvolume: Sequence[int], channels: int, batch_size: int,
                   classes_per_image: int = 1, *, accumulate: int = 1,
                   platform: str | None = None) -> int:
  """An estimate of the peak memory of a training step on one device, in bytes.

  Args:
    subvolume: spatial shape of an input; a multiple of `model.stride`.
    channels: of the image.
    batch_size: images on the device.
    classes_per_image: decodes per image; what the network computes once counts once.
    accumulate: parts that the batch is taken in.
    platform: `cpu`, `gpu` or `tpu`; the default backend when None.
  """
  variables, once, per_class = _outputs(model, channels)
  if model.encoder_sees_class:
    once, per_class = Outputs(0, ()), Outputs(once.kept + per_class.kept,
                                              once.inside + per_class.inside)
  n, platform = classes_per_image, platform or jax.default_backend()
  blocks = [*once.inside, *(n * size for size in per_class.inside)]
  # Where blocks are computed again, one at a time is there as a whole. XLA on CPU drops what holds
  # this back until the gradient needs it, and saves nothing.
  again = model.remat and platform != "cpu"
  outputs = once.kept + n * per_class.kept + (max(blocks) if again else sum(blocks))
  images = -(-batch_size // accumulate)
  units = math.prod(subvolume) / math.prod(model.stride) * images
  # Parameters, their gradient, the two moments of Adam; a sum of gradients where there are parts.
  copies = 4 + (accumulate > 1)
  fixed = copies * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
  return int(PEAK[platform] * outputs * units) + fixed


def prediction_bytes(model: DenseUNet, window: Sequence[int], channels: int,
                     window_batch: int = 1) -> int:
  """An estimate of the memory of `infer.sliding_window` for a batch of windows, without its output.

  Classes are decoded one after the other, as on a CPU.

  Args:
    window: spatial shape; a multiple of `model.stride`.
    channels: of the image.
    window_batch: windows of a call.
  """
  _, once, per_class = _outputs(model, channels)
  outputs = once.kept + per_class.kept + sum(once.inside) + sum(per_class.inside)
  units = math.prod(window) / math.prod(model.stride) * window_batch
  return int(FORWARD_PEAK * outputs * units)


@functools.lru_cache(maxsize=64)
def _outputs(model: DenseUNet, channels: int) -> tuple[Mapping, Outputs, Outputs]:
  """Variables, and outputs of `encode` and `decode`, for an image of the shape of the stride.

  Activations are proportional to the voxels, so that the smallest input tells; only shapes are
  computed.
  """
  model = model.clone(remat=False)
  image = jax.ShapeDtypeStruct((1, *model.stride, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  capture = dict(capture_intermediates=True, mutable=["intermediates"])
  variables = jax.eval_shape(lambda x, i: model.init(jax.random.key(0), x, i), image, ids)
  seen = variables
  if model.position == "decoders":  # a sample runs through one of them
    model = model.clone(position="none", from_level=None)
    seen = jax.eval_shape(lambda x, i: model.init(jax.random.key(0), x, i), image, ids)
  features, encoded = jax.eval_shape(
      lambda v, x, i: model.apply(v, x, i, method=model.encode, **capture), seen, image, ids)
  _, decoded = jax.eval_shape(
      lambda v, f, i: model.apply(v, f, i, method=model.decode_levels, **capture), seen,
      features, ids)
  return variables, _sizes(encoded["intermediates"]), _sizes(decoded["intermediates"])


def _sizes(captured: Mapping) -> Outputs:
  kept, inside = 0, []
  for name, tree in captured.items():
    total, own = _bytes(tree), _bytes(tree.get("__call__", ()))
    if name.startswith(("down_", "merge_")):
      kept, inside = kept + own, [*inside, total - own]
    else:
      kept += total
  return Outputs(kept, tuple(inside))


def _bytes(tree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
