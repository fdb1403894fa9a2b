"""Collects features of sampled voxels of many images under every class, the input of the measures.

Also measures their similarity under two classes and the share of variance that the class explains.
"""

from collections.abc import Callable
from collections.abc import Mapping
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

VOXELS = 200_000  # per layer, for all images and classes together
VOXELS_PER_IMAGE = 4096
NO_VARIANCE = 1e-12  # relative to the mean square: less variance is rounding error


class Features(NamedTuple):
  """Features of one layer.

  Attributes:
    layer: the layer.
    voxels: float32 [K, N, V, C], the same V voxels of an image under each of the K classes.
    pooled: float32 [K, N, C], spatial means.
    mask: uint8 [N, V, K], three-valued masks at these voxels, reduced to the level.
  """

  layer: activations.LayerInfo
  voxels: np.ndarray
  pooled: np.ndarray
  mask: np.ndarray


def collect(model: DenseUNet, variables: Mapping, samples: Sequence[Sample], classes: int,
            on_progress: Callable[[], None] = lambda: None) -> list[Features]:
  """Collects the features of every layer, in network order.

  Args:
    model: the network.
    variables: variables of the network.
    samples: N images.
    classes: number of classes K.
    on_progress: called after each image and class.
  """
  layers = activations.list_layers(model, samples[0].image.shape[-1])
  compute = activations.compiled(model)
  count = min(VOXELS_PER_IMAGE, max(1, VOXELS // (classes * len(samples))))
  collected: list[Features] = []
  for n, sample in enumerate(samples):
    chosen: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    for k in range(classes):
      outputs = compute(variables, sample.image[None], jnp.full(1, k, jnp.int32))
      for i, (layer, output) in enumerate(zip(layers, jax.device_get(outputs), strict=True)):
        shape, channels = output.shape[1:-1], output.shape[-1]
        if shape not in chosen:
          # Seeded by the image, so every network is measured on the same voxels.
          chosen[shape] = choose_voxels(sample.masks, shape, count, seed=n)
        index, mask = chosen[shape]
        if len(collected) == i:
          sizes = (classes, len(samples))
          collected.append(Features(layer, np.empty((*sizes, len(index), channels), np.float32),
                                    np.empty((*sizes, channels), np.float32),
                                    np.empty((len(samples), *mask.shape), np.uint8)))
        flat, features = output.reshape(-1, channels), collected[i]
        features.voxels[k, n], features.pooled[k, n] = flat[index], flat.mean(0)
        features.mask[n] = mask
      on_progress()
  return collected


def choose_voxels(masks: np.ndarray, shape: Sequence[int], count: int,
                  seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws random voxels of a level among those labelled for at least one class.

  Args:
    masks: three-valued, [*finest shape, K].
    shape: spatial shape of the level.
    count: number of voxels V, at most all voxels of the level.
    seed: of the random choice.

  Returns:
    Flat indices [V], and the masks at these voxels [V, K].
  """
  strides = [n // m for n, m in zip(masks.shape, shape, strict=False)]
  # Reduced per class: a structure that is too thin for the level becomes unlabelled.
  reduced = np.asarray(losses.reduce_mask(jnp.asarray(masks)[None], strides))[0]
  reduced = reduced.reshape(-1, masks.shape[-1])
  labelled = np.flatnonzero((reduced != UNLABELLED).any(-1))
  if not len(labelled):
    labelled = np.arange(len(reduced))
  count = min(count, len(reduced))
  index = np.random.default_rng(seed).choice(labelled, count, replace=len(labelled) < count)
  return index, reduced[index]


# --- similarity of the features of one layer under two classes ------------------------------------
def linear_cka(x_VC: np.ndarray, y_VE: np.ndarray) -> float | None:
  """Computes the linear centred kernel alignment of two sets of features of the same voxels.

      CKA = ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖),   Frobenius norms, columns centred

  Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019. 1 for
  features that are equal up to rotation, shift and isotropic scaling; 0 for uncorrelated features.

  Args:
    x_VC: features of V voxels.
    y_VE: other features of the same voxels.

  Returns:
    None if one of the sets has no variance.
  """
  x, y = _centred(x_VC), _centred(y_VE)
  if x is None or y is None:
    return None
  within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  return float(np.linalg.norm(y.T @ x) ** 2 / within)


def class_share(features_KVC: np.ndarray) -> float | None:
  """Computes the share of the features' variance that is explained by the requested class.

      E_v Var_k f(v, k) / Var_{v,k} f(v, k),   summed over channels

  0 if the class changes nothing, 1 if all voxels are equal under each class.

  Args:
    features_KVC: features of the same V voxels under K classes.

  Returns:
    None if the features have no variance.
  """
  features = np.asarray(features_KVC, np.float64)
  total = features.var((0, 1)).sum()
  if total <= NO_VARIANCE * np.square(features).mean((0, 1)).sum():
    return None
  return float(features.var(0).mean(0).sum() / total)


def _centred(x: np.ndarray) -> np.ndarray | None:
  x = np.asarray(x, np.float64)
  centred = x - x.mean(0)
  if np.square(centred).sum() <= NO_VARIANCE * np.square(x).sum():
    return None
  return centred
