"""Features of some voxels of many images under every class: what the measures are taken of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax import losses
from condseg_jax.analysis import activations
from condseg_jax.analysis.samples import Sample
from condseg_jax.classes import UNLABELLED
from condseg_jax.models.dense_unet import DenseUNet

VOXELS = 200_000  # for all images and classes together, in a layer
VOXELS_PER_IMAGE = 4096


class Features(NamedTuple):
  """Of one layer.

  Attributes:
    place: the layer.
    voxels: float32 [K, N, V, C], the same V voxels of an image under each of the K classes.
    pooled: float32 [K, N, C], means over space.
    mask: uint8 [N, V, K], three-valued masks at these voxels, reduced to the level.
  """

  place: activations.Place
  voxels: np.ndarray
  pooled: np.ndarray
  mask: np.ndarray


def collect(model: DenseUNet, variables, samples: Sequence[Sample], classes: int,
            seen: Callable[[], None] = lambda: None) -> list[Features]:
  """The features of every layer, in network order.

  Args:
    model: the network.
    variables: of the network.
    samples: N images.
    classes: K.
    seen: called after each image and class.
  """
  places = activations.places(model, samples[0].image.shape[-1])
  compute = activations.compiled(model)
  most = min(VOXELS_PER_IMAGE, max(1, VOXELS // (classes * len(samples))))
  out: list[Features] = []
  for n, sample in enumerate(samples):
    chosen: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    for k in range(classes):
      found = compute(variables, sample.image[None], jnp.full(1, k, jnp.int32))
      for i, (place, layer) in enumerate(zip(places, jax.device_get(found), strict=True)):
        shape, channels = layer.shape[1:-1], layer.shape[-1]
        if shape not in chosen:
          # The same voxels for every network.
          chosen[shape] = choose_voxels(sample.masks, shape, most, seed=n)
        index, mask = chosen[shape]
        if len(out) == i:
          sizes = (classes, len(samples))
          out.append(Features(place, np.empty((*sizes, len(index), channels), np.float32),
                              np.empty((*sizes, channels), np.float32),
                              np.empty((len(samples), *mask.shape), np.uint8)))
        flat = layer.reshape(-1, channels)
        out[i].voxels[k, n], out[i].pooled[k, n], out[i].mask[n] = flat[index], flat.mean(0), mask
      seen()
  return out


def choose_voxels(masks: np.ndarray, shape: Sequence[int], most: int,
                  seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Some voxels of a level, drawn from those that some class labels.

  Args:
    masks: three-valued, [*finest shape, K].
    shape: of the level.
    most: number of voxels, or that of the level where it has fewer.
    seed: of the choice.

  Returns:
    (V flat indices, their masks [V, K]).
  """
  strides = [n // m for n, m in zip(masks.shape, shape, strict=False)]
  # Per class: one that is too thin for the level is unlabelled there.
  reduced = np.asarray(losses.reduce_mask(jnp.asarray(masks)[None], strides))[0]
  reduced = reduced.reshape(-1, masks.shape[-1])
  labelled = np.flatnonzero((reduced != UNLABELLED).any(-1))
  if not len(labelled):
    labelled = np.arange(len(reduced))
  count = min(most, len(reduced))
  index = np.random.default_rng(seed).choice(labelled, count, replace=len(labelled) < count)
  return index, reduced[index]
