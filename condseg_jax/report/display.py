"""What of an image is shown, and how: views, telling slices, intensities, the truth as one map."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from condseg_jax.classes import ClassTable
from condseg_jax.classes import UNLABELLED
from condseg_jax.infer.fuse import label_map

ABDOMEN_HU = (-160.0, 240.0)  # the abdominal soft-tissue window of CT


class View(NamedTuple):
  """One plane through a canonical volume (axes towards S, P, L) in radiological orientation."""
  name: str
  axis: int  # array axis perpendicular to the plane
  top_down: bool  # whether the first remaining axis runs down the page without flipping
  letters: tuple[str, str, str, str]  # at the left, right, top, bottom

  def plane(self, array: np.ndarray, index: int) -> np.ndarray:
    """Returns a slice of a volume in display orientation."""
    return np.take(array, index, axis=self.axis)[::1 if self.top_down else -1]


VIEWS = (View("axial", 0, True, ("R", "L", "A", "P")),
          View("coronal", 1, False, ("R", "L", "S", "I")),
          View("sagittal", 2, False, ("A", "P", "S", "I")))


def robust_window(image: np.ndarray) -> tuple[float, float]:
  """Returns the intensities to show as black and white, robust against outliers."""
  sample = image.ravel()[::max(1, image.size // 1_000_000)].astype(np.float32)
  sample = sample[np.isfinite(sample)]
  return tuple(np.percentile(sample, [1, 99.5])) if sample.size else (0.0, 1.0)


def displayable(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
  """Converts a 2-D image to RGB between 0 and 1, (H, W, 3)."""
  lo, hi = window
  image = np.nan_to_num(image.astype(np.float32), posinf=hi, neginf=lo, nan=lo)
  image = np.clip((image - lo) / max(hi - lo, 1e-12), 0, 1)
  return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def telling_indices(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, ...]:
  """Returns, per axis, the slice with the largest cross-sections of the structures.

  Structures of the truth count, or of the prediction if the truth is empty. Each class is weighted
  relative to its own largest cross-section, so that a liver does not outweigh a pancreas.
  """
  for labels in (np.where(truth == UNLABELLED, 0, truth), prediction):
    profiles = [np.zeros(n) for n in truth.shape]
    for value, box in enumerate(ndimage.find_objects(labels), 1):
      if box is not None:
        mask = labels[box] == value
        for axis, profile in enumerate(profiles):
          areas = np.count_nonzero(np.moveaxis(mask, axis, 0), axis=(1, 2))
          profile[box[axis]] += areas / areas.max()
    if profiles[0].any():
      return tuple(int(np.argmax(profile)) for profile in profiles)
  return tuple(n // 2 for n in truth.shape)


def truth_map(truth: Mapping[str, np.ndarray], table: ClassTable) -> np.ndarray:
  """Combines three-valued masks of classes into one label map, see `infer.fuse.label_map`."""
  return label_map(np.stack(list(truth.values())), [table.index(name) for name in truth])
