"""A few numbers that say what an image looks like to the encoder of a network."""

from collections.abc import Mapping

import jax
import numpy as np

from condseg_jax.infer.schedule import layers
from condseg_jax.infer.schedule import pad_to_window
from condseg_jax.infer.sliding_window import WindowFunctions


def pooled_features(functions: WindowFunctions, variables: Mapping | None, image_DHWC: np.ndarray,
                    window: tuple[int, ...], class_id: int) -> np.ndarray:
  """Averages the coarsest features of the encoder over an image, in adjacent windows.

  Args:
    functions: of the network.
    variables: of the network.
    image_DHWC: normalised image at the network's spacing; no D in 2-D.
    window: shape of a window.
    class_id: class for an encoder that sees it.

  Returns:
    float32 [C].
  """
  image = np.pad(image_DHWC, (*pad_to_window(image_DHWC.shape[:-1], window), (0, 0)), mode="edge")
  ids = np.full(functions.at_once[-1], -1, np.int32)
  ids[0] = class_id
  means = []
  for start in sum(layers(image.shape[:-1], window, 1.0), []):
    box = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
    features = functions.encode(variables, np.asarray(image[box], np.float32)[None], ids)
    coarsest = min(jax.tree.leaves(features), key=lambda leaf: np.prod(leaf.shape[:-1]))
    if functions.encoder_sees_class:
      coarsest = coarsest[0]
    means.append(np.asarray(coarsest, np.float32).reshape(-1, coarsest.shape[-1]).mean(0))
  return np.mean(means, 0)
