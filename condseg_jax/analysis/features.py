"""Features of some voxels of many images under every class: what the measures are taken of."""

from collections.abc import Callable
from collections.abc import Sequence
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


# --- How alike the features of one layer are under two classes.
NOTHING = 1e-12  # of the mean square: less variance than that is rounding


def linear_cka(x_VC: np.ndarray, y_VE: np.ndarray) -> float | None:
  """Linear centred kernel alignment of two sets of features of the same voxels.

      CKA = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖),   Frobenius norms, columns centred

  Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019. 1 for the
  same features up to rotation, shift and one scale; 0 for uncorrelated ones.

  Returns:
    None where one of them does not vary.
  """
  x, y = _centred(x_VC), _centred(y_VE)
  if x is None or y is None:
    return None
  within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  return float(np.linalg.norm(y.T @ x) ** 2 / within)


def class_share(features_KVC: np.ndarray) -> float | None:
  """The part of the features' variance that is due to the class asked for.

      E_v Var_k f(v, k) / Var_{v,k} f(v, k),   summed over channels

  0 where the class changes nothing, 1 where all voxels are alike under each class.

  Args:
    features_KVC: features of the same V voxels under K classes.

  Returns:
    None where nothing varies.
  """
  features = np.asarray(features_KVC, np.float64)
  total = features.var((0, 1)).sum()
  if total <= NOTHING * np.square(features).mean((0, 1)).sum():
    return None
  return float(features.var(0).mean(0).sum() / total)


def _centred(x: np.ndarray) -> np.ndarray | None:
  x = np.asarray(x, np.float64)
  centred = x - x.mean(0)
  if np.square(centred).sum() <= NOTHING * np.square(x).sum():
    return None
  return centred
