"""How much memory a training step takes, before one is compiled."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

from condseg_jax.models.dense_unet import DenseUNet

# Peak of a step as a part of the sum of all layers' outputs. Measured: 0.77 on an H100 (2 x 128^3,
# float32, six levels); XLA's own account on CPU 1.6 to 1.9 in 3-D, 0.85 in 2-D. Rounded up.
PEAK = {"cpu": 2.0, "gpu": 1.0, "tpu": 1.0}


def training_bytes(model: DenseUNet, subvolume: Sequence[int], channels: int, batch_size: int,
                   classes_per_image: int = 1, platform: str | None = None) -> int:
  """An estimate of the peak memory of a training step on one device, in bytes.

  Args:
    subvolume: spatial shape of an input; a multiple of `model.stride`.
    channels: of the image.
    batch_size: images on the device.
    classes_per_image: decodes per image; the whole network is counted for each.
    platform: `cpu`, `gpu` or `tpu`; the default backend when None.
  """
  # Activations are proportional to the voxels, so that the smallest input tells.
  unit = model.stride
  image = jax.ShapeDtypeStruct((1, *unit, channels), jnp.float32)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  variables = jax.eval_shape(lambda x, i: model.init(jax.random.key(0), x, i), image, ids)
  _, kept = jax.eval_shape(
      lambda v, x, i: model.apply(v, x, i, capture_intermediates=True, mutable=["intermediates"]),
      variables, image, ids)
  outputs = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
  # Parameters, their gradient, and the two moments of Adam.
  fixed = 4 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
  units = math.prod(subvolume) / math.prod(unit) * batch_size * classes_per_image
  return int(PEAK[platform or jax.default_backend()] * outputs * units) + fixed
