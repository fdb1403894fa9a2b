"""Draws voxels near the border of every mask, and collects what a network finds there.

Far from a structure every network is sure and right, and such voxels are most of a volume: they
would hide how well probabilities are calibrated where masks are decided.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.infer.sliding_window import Slab
from condseg_jax.model_io.fold_run import Voxels

NEAR = 10  # voxels from the border, along each axis
DRAWN = 1000  # voxels per class and case on either side of the border, at most
MAX_LOGIT = 16.0  # where float32 sigmoids reach 1


class BorderVoxels:
  """Voxels of one case, an observer of its prediction.

  Args:
    masks: class id → three-valued mask on the grid and axes of the prediction.
    seed: of the draw.
  """

  def __init__(self, masks: Mapping[int, np.ndarray], seed: int):
    rng = np.random.default_rng(seed)
    self._places: dict[int, np.ndarray] = {}
    self._voxels: dict[int, Voxels] = {}
    for class_id, mask in masks.items():
      places_NA, positive_N, weight_N = _draw(mask, rng)
      self._places[class_id] = places_NA
      self._voxels[class_id] = Voxels(np.zeros(len(weight_N), np.float32), positive_N, weight_N)

  def __call__(self, slab: Slab) -> None:
    """Reads the voxels that are in a slab."""
    start = [extent.start for extent in slab.box]
    stop = [extent.stop for extent in slab.box]
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      if class_id in self._places:
        places_NA = self._places[class_id]
        inside = ((places_NA >= start) & (places_NA < stop)).all(1)
        found = plane[tuple((places_NA[inside] - start).T)]
        self._voxels[class_id].logit[inside] = logit(found)

  def voxels(self) -> dict[int, Voxels]:
    """Returns class id → its voxels; without those of classes that are absent."""
    return {class_id: voxels for class_id, voxels in self._voxels.items() if len(voxels.logit)}


def _draw(mask: np.ndarray, rng: np.random.Generator
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws as many voxels in a mask as outside of it, near its border.

  Args:
    mask: three-valued; unlabelled voxels are never drawn.
    rng: of the draw.

  Returns:
    Indices [N, axes]; bool [N], whether they are in the mask; weights [N] that undo the equal
    numbers: those of each side sum to its share of the labelled voxels near the border.
  """
  nothing = np.zeros((0, mask.ndim), np.intp), np.zeros(0, bool), np.zeros(0, np.float32)
  found = ndimage.find_objects((mask == POSITIVE).view(np.uint8), max_label=1)[0]
  if found is None:
    return nothing
  box = tuple(slice(max(0, s.start - NEAR), s.stop + NEAR) for s in found)
  part = mask[box]
  within, outside = (part == POSITIVE).view(np.uint8), (part == NEGATIVE).view(np.uint8)
  size = 2 * NEAR + 1
  sides = [np.argwhere(within & ndimage.maximum_filter(outside, size)),
           np.argwhere(outside & ndimage.maximum_filter(within, size))]
  count = min(DRAWN, *map(len, sides))
  if not count:
    return nothing
  total = sum(map(len, sides))
  drawn = [side[np.sort(rng.choice(len(side), count, replace=False))] for side in sides]
  places_NA = np.concatenate(drawn) + [s.start for s in box]
  weight_N = np.repeat([len(side) / total / count for side in sides], count)
  return places_NA, np.arange(2 * count) < count, weight_N.astype(np.float32)


def logit(probability: np.ndarray) -> np.ndarray:
  """Returns log(p / (1 - p)) within ±`MAX_LOGIT`, float32."""
  with np.errstate(divide="ignore"):
    z = np.log(probability) - np.log1p(-probability)
  return np.clip(z, -MAX_LOGIT, MAX_LOGIT).astype(np.float32)
