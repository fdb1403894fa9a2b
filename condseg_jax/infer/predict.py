"""Class probabilities of a volume by sliding window: encode once, decode once per class."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.infer import tiles
from condseg_jax.models.dense_unet import DenseUNet

CLASS_CHUNK = 8  # classes decoded at once


class WindowFunctions(NamedTuple):
  """The network on a batch of windows, compiled once for each shape.

  Attributes:
    encode: (variables, image_BDHWC, class_id_K) → features, with a leading axis K where the
      encoder sees the class.
    decode: (variables, features, class_id_K) → probability float32 [B, *window, K].
    encoder_sees_class: whether features belong to classes, so that other classes need others.
  """

  encode: Callable
  decode: Callable
  encoder_sees_class: bool


@functools.lru_cache(maxsize=8)
def window_functions(model: DenseUNet) -> WindowFunctions:
  """The two halves of a network for prediction; the same network gives the same functions."""
  def encode(variables, image, class_id_K):
    def one(class_id):
      ids = None if class_id is None else jnp.full(image.shape[:1], class_id)
      return model.apply(variables, image, ids, method=model.encode)
    return jax.vmap(one)(class_id_K) if model.encoder_sees_class else one(None)

  def decode(variables, features, class_id_K):
    def one(features, class_id):
      ids = jnp.full(features.x.shape[:1], class_id)
      return jax.nn.sigmoid(model.apply(variables, features, ids, method=model.decode))
    axes = (0 if model.encoder_sees_class else None, 0)
    return jax.vmap(one, in_axes=axes, out_axes=-1)(features, class_id_K)

  return WindowFunctions(jax.jit(encode), jax.jit(decode), model.encoder_sees_class)


def class_probabilities(functions: WindowFunctions, variables, image_DHWC: np.ndarray,
                        class_ids: Sequence[int], window: Sequence[int], *, step: float = 0.5,
                        window_batch: int | None = None) -> np.ndarray:
  """Probability of every class at every voxel.

  Windows have one fixed shape and come in batches of one fixed size, so that every volume uses the
  same compiled program. Each is encoded once; its classes are decoded in chunks. Where windows
  overlap, their probabilities are averaged with Gaussian weights.

  Args:
    functions: of `window_functions`.
    variables: of the network.
    image_DHWC: normalised image at the network's spacing; without D in 2-D.
    class_ids: the classes wanted.
    window: shape of a window.
    step: see `tiles.window_starts`.
    window_batch: windows per call; by default 1 on CPU and 4 elsewhere.

  Returns:
    float32 [K, *shape].
  """
  window_batch = window_batch or (1 if jax.default_backend() == "cpu" else 4)
  shape = image_DHWC.shape[:-1]
  # A volume smaller than the window is surrounded by its own edge, as in training.
  padding = [(max(0, w - n) // 2, max(0, w - n) - max(0, w - n) // 2)
             for n, w in zip(shape, window, strict=True)]
  image = np.pad(image_DHWC, (*padding, (0, 0)), mode="edge")

  chunk = min(CLASS_CHUNK, len(class_ids))
  chunks = [np.asarray(class_ids[i:i + chunk]) for i in range(0, len(class_ids), chunk)]
  weights = tiles.gaussian_weights(window)
  total = np.zeros((len(class_ids), *image.shape[:-1]), np.float32)
  norm = np.zeros(image.shape[:-1], np.float32)
  starts = tiles.window_starts(image.shape[:-1], window, step)
  for first in range(0, len(starts), window_batch):
    boxes = [tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
             for start in starts[first:first + window_batch]]
    batch = np.stack([image[box] for box in boxes])
    batch = np.pad(batch, [(0, window_batch - len(boxes))] + [(0, 0)] * (batch.ndim - 1))
    for number, ids in enumerate(chunks):
      padded = np.pad(ids, (0, chunk - len(ids)), mode="edge").astype(np.int32)
      if number == 0 or functions.encoder_sees_class:
        features = functions.encode(variables, batch, padded)
      scores = np.asarray(functions.decode(variables, features, padded))
      for box, score in zip(boxes, scores, strict=False):
        for k in range(len(ids)):
          total[(number * chunk + k, *box)] += weights * score[..., k]
    for box in boxes:
      norm[box] += weights
  total /= norm
  inside = tuple(slice(low, low + n) for (low, _), n in zip(padding, shape, strict=True))
  return total[(slice(None), *inside)]
