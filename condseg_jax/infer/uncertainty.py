"""How undecided a prediction is at every voxel, collected slab by slab.

    H = -Σ q log₂ q

over the classes and the background, which exclude each other as in `fuse.best_class`. Of an
ensemble q is the mean of its members: the entropy is then large where one of them is undecided, and
where they contradict each other. Shannon, Bell System Technical Journal 27, 1948.
"""

from collections.abc import Sequence

import numpy as np

from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume
from condseg_jax.infer.fuse import odds
from condseg_jax.infer.sliding_window import Slab
from condseg_jax.infer.to_native import resampled

VOXEL_BYTES = 8  # kept while a prediction is made, on its grid


class Entropy:
  """The entropy of a prediction, an observer of its probabilities.

  With the odds o = p / (1 - p) of the classes, S = Σ o and T = Σ o ln o, the entropy in nats is
  ln (1 + S) - T / (1 + S). Where classes may overlap it is the sum of those of the classes.

  Args:
    shape: spatial shape of the volume.
    exclusive: whether classes exclude each other.
  """

  def __init__(self, shape: Sequence[int], *, exclusive: bool = True):
    self._exclusive = exclusive
    self._sums = np.zeros(shape, np.float32)
    self._terms = np.zeros(shape if exclusive else (0,), np.float32)

  def __call__(self, slab: Slab) -> None:
    """Adds a slab."""
    sums, of_classes = self._sums[slab.box], self._terms[slab.box if self._exclusive else ...]
    for plane in slab.planes:
      for row, probability in enumerate(plane):  # row by row, to save memory
        o = odds(probability)
        terms = o * np.log(np.where(o > 0, o, 1))
        if self._exclusive:
          sums[row] += o
          of_classes[row] += terms
        else:
          sums[row] += np.log1p(o) - terms / (1 + o)

  def bits(self) -> np.ndarray:
    """Returns the entropy, float32 [*shape]: 0 to log₂ (classes + 1); overlapping, to classes."""
    for row, terms in enumerate(self._terms):
      total = 1 + self._sums[row]
      self._sums[row] = np.log(total) - terms / total
    self._terms = self._terms[:0]
    return np.divide(np.maximum(self._sums, 0, out=self._sums), np.log(2), out=self._sums)


def native_map(bits: np.ndarray, geometry: Geometry) -> Volume:
  """Interpolates an entropy on the network's grid to that of the file, as float16."""
  shape = canonical_geometry(geometry).shape
  return from_canonical(resampled(lambda rows: bits[rows], bits.shape, shape, np.float16), geometry)
