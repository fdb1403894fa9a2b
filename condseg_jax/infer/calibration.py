"""Calibration: what a probability of a class says about its voxels, corrected class by class.

Classes that were learned from different datasets are not equally sure of themselves, and they
compete for every voxel. Each gets two numbers of its own (Platt scaling), fitted on training cases
by networks that did not see them (`evaluate.calibration`).
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from condseg_jax.infer.sliding_window import Slab

MAX_LOGIT = 16.0  # where float32 sigmoids reach 1


class Scaling(NamedTuple):
  """The map of a class from the logit z of its probability to slope · z + intercept.

  Attributes:
    slope: above 0, so that the order of voxels within the class stays.
    intercept: the logit that z = 0 becomes.
  """

  slope: float
  intercept: float

  def __call__(self, probability: np.ndarray) -> np.ndarray:
    """Returns calibrated probabilities, of the same type; 0 stays 0 and 1 stays 1."""
    with np.errstate(divide="ignore", over="ignore"):
      z = np.log(probability) - np.log1p(-probability)
      return 1 / (1 + np.exp(-(self.slope * z + self.intercept)))


def calibrated(slabs: Iterable[Slab], scalings: Mapping[int, Scaling]) -> Iterator[Slab]:
  """Calibrates probabilities.

  Args:
    slabs: modified in place.
    scalings: class id → its scaling; other classes stay unchanged.

  Yields:
    The slabs.
  """
  for slab in slabs:
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      if class_id in scalings:
        for row in plane:  # row by row, to save memory
          row[...] = scalings[class_id](row)
    yield slab


def logit(probability: np.ndarray) -> np.ndarray:
  """Returns log(p / (1 - p)) within ±`MAX_LOGIT`, float32."""
  with np.errstate(divide="ignore"):
    z = np.log(probability) - np.log1p(-probability)
  return np.clip(z, -MAX_LOGIT, MAX_LOGIT).astype(np.float32)
