"""The result of a prediction: label map and masks on the native grid of the image."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume
from condseg_jax.geometry import voxel_ml
from condseg_jax.infer import to_native
from condseg_jax.infer.fuse import ranks
from condseg_jax.infer.postprocess import clean
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.infer.postprocess import drop_detached
from condseg_jax.infer.probability_store import ProbabilityStore


class Masks(Mapping):
  """Class → bool mask on the grid of the file, computed on access."""

  def __init__(self, names: Sequence[str], make: Callable[[str], np.ndarray]):
    self._names, self._make = tuple(names), make

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._names:
      raise KeyError(name)
    return self._make(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The segmentation of a volume, on the grid of the file it was read from.

  Attributes:
    label: label map, class id + 1, 0 for background.
    names: class → its value in the label map, for the requested classes.
    masks: class → bool mask, computed on access; masks may overlap with independent fusion.
    confidence: class → mean probability, on the network's grid, of the voxels assigned to it; None
      if there are none.
    quality: class → see `infer.quality.quality`, for every class of which voxels were found.
  """

  label: Volume
  names: Mapping[str, int]
  masks: Mapping[str, np.ndarray]
  confidence: Mapping[str, float | None]
  quality: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def native_label(best: np.ndarray, score: np.ndarray, geometry: Geometry, threshold: float,
                 within: Mapping[int, int], filters: Mapping[int, ComponentFilter]) -> Volume:
  """Makes the label map on the native grid, without detached parts and filtered components.

  Args:
    best: class id + 1 per voxel of the network's grid, see `fuse.best_class`; overwritten.
    score: its probability; overwritten.
    geometry: the native grid.
    threshold: probability from which a voxel belongs to a class.
    within: part → whole, as class ids.
    filters: label value → filter of its components.
  """
  label = to_native.label_map(best, score, canonical_geometry(geometry).shape, threshold)
  rank = ranks(within)
  for part in sorted(rank, key=rank.get, reverse=True):
    drop_detached(label, part + 1, within[part] + 1)
  for value, component_filter in filters.items():
    clean(label, value, component_filter, voxel_ml(geometry.affine))
  return from_canonical(label, geometry)


def stored_masks(store: ProbabilityStore, names: Mapping[str, int], geometry: Geometry,
                 threshold: float, filters: Mapping[int, ComponentFilter]) -> Masks:
  """Makes masks that may overlap, each computed from its stored probability on access.

  Args:
    store: probabilities on the network's grid.
    names: class → class id + 1.
    geometry: the native grid.
    threshold: probability from which a voxel belongs to a class.
    filters: label value → filter of its components.
  """
  shape = canonical_geometry(geometry).shape

  def make(name):
    value = names[name]
    mask = to_native.mask(lambda rows: store.rows(value - 1, rows), store.shape, shape, threshold)
    if value in filters:
      clean(mask, True, filters[value], voxel_ml(geometry.affine))
    return from_canonical(mask, geometry).array

  return Masks(names, make)
