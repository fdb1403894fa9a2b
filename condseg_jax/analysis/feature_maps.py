"""Scalar maps of the features of one image under each class, for figures of one slice."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from condseg_jax.analysis import activations
from condseg_jax.analysis.features import class_share
from condseg_jax.analysis.samples import Sample
from condseg_jax.classes import UNLABELLED
from condseg_jax.infer.fuse import label_map
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.report.display import telling_indices

MAX_CLASSES = 4  # shown in a figure


class LayerMap(NamedTuple):
  """A slice through the features of a layer.

  Attributes:
    name: name of the layer.
    maps: class → [H, W], see `principal_maps`.
    change: [H, W], standard deviation between the classes relative to that of all features.
    share: `class_share` for this image.
  """

  name: str
  maps: dict[str, np.ndarray]
  change: np.ndarray
  share: float | None


def principal_maps(features_KSC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Reduces features to two kinds of scalar maps.

  Args:
    features_KSC: features under K classes, [K, *shape, C].

  Returns:
    The projection on the first principal component within classes [K, *shape], one component for
    all classes, with the spatial mean of each class removed and signed so that the skewness is
    positive; and the change between classes [*shape], √(Σ_c Var_k f) / √(Σ_c Var f). Zeros if the
    features have no variance.
  """
  features = np.asarray(features_KSC, np.float64)
  flat = features.reshape(len(features), -1, features.shape[-1])
  centred = flat - flat.mean(1, keepdims=True)
  _, axes = np.linalg.eigh(np.einsum("kvc,kve->ce", centred, centred))
  projection = centred @ axes[:, -1]
  projection *= 1 if (projection ** 3).sum() >= 0 else -1
  total = flat.var((0, 1)).sum()
  change = np.sqrt(features.var(0).sum(-1) / total) if total > 0 else np.zeros(features.shape[1:-1])
  return projection.reshape(features.shape[:-1]), change


def shown_layers(layers: Sequence[activations.LayerInfo]) -> list[str]:
  """Returns the names of the layers in a figure: the last layer of every block, and the head."""
  last = {layer.name.partition("/")[0]: layer.name for layer in layers if "/" in layer.name}
  names = {*last.values(), "head"}
  return [layer.name for layer in layers if layer.name in names]


def layer_maps(model: DenseUNet, variables: Mapping, sample: Sample, names: Sequence[str],
               layers: Sequence[str]) -> tuple[list[LayerMap], np.ndarray, np.ndarray]:
  """Computes slices through some layers under every class, annotated classes first.

  In 3-D the slice is the axial one with the largest cross-section of the structures.

  Args:
    model: the network.
    variables: variables of the network.
    sample: the image.
    names: classes in the order of their ids.
    layers: names of the layers.

  Returns:
    The maps, the slice of the image [H, W], and that of the label map of the shown classes [H, W],
    id + 1 where positive.
  """
  other = (i for i in range(len(names)) if i not in sample.annotated)
  ids = (*sample.annotated, *other)[:MAX_CLASSES]
  order = [layer.name for layer in activations.list_layers(model, sample.image.shape[-1])]
  compute = activations.compiled(model)
  outputs_of: dict[str, list] = {name: [] for name in layers}
  for i in ids:
    outputs = compute(variables, sample.image[None], jnp.full(1, i, jnp.int32))
    for name, output in zip(order, outputs, strict=True):
      if name in outputs_of:
        outputs_of[name].append(jax.device_get(output)[0])
  label = label_map(np.moveaxis(sample.masks[..., list(ids)], -1, 0), ids)
  depth = telling_indices(np.where(label == UNLABELLED, 0, label), label)[0] if (
      label.ndim == 3) else None

  def cut(array):
    """Returns the slice at the same position of a level."""
    return array if depth is None else array[depth * array.shape[0] // label.shape[0]]

  maps = []
  for name, outputs in outputs_of.items():
    features = np.stack(outputs)
    projections, change = principal_maps(features)
    share = class_share(features.reshape(len(ids), -1, features.shape[-1]))
    maps.append(LayerMap(name, {names[i]: cut(p) for i, p in zip(ids, projections, strict=True)},
                         cut(change), share))
  return maps, cut(sample.image.mean(-1)), cut(label)


def pack(image: np.ndarray) -> dict:
  """Encodes a picture for JSON: 256 steps between minimum and maximum, base64."""
  low, high = float(image.min()), float(image.max())
  steps = np.rint((image - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
  return {"shape": list(image.shape), "low": low, "high": high,
          "data": base64.b64encode(steps.tobytes()).decode("ascii")}


def unpack(packed: Mapping) -> np.ndarray:
  """Decodes a picture of `pack`, exact to half a step: float64 [H, W]."""
  steps = np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(packed["shape"])
  return packed["low"] + steps * ((packed["high"] - packed["low"]) / 255)
