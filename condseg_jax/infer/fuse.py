"""Fuses per-class probabilities into the best class per voxel.

Memory does not depend on the number of classes: slabs are consumed one at a time.
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError
from condseg_jax.infer.sliding_window import Slab

FUSIONS = ("argmax", "softmax", "independent")
Observer = Callable[[Slab], None]  # must not change it
CERTAIN = 1 - 1e-6  # probabilities are clipped here before odds are computed


def label_dtype(class_ids: Sequence[int]) -> type:
  """Returns uint8, or uint16 if a label value exceeds 255."""
  return np.uint8 if max(class_ids) + 1 <= 255 else np.uint16


def best_class(slabs: Iterable[Slab], shape: Sequence[int], class_ids: Sequence[int], *,
               exclusive: bool = False, rank: Mapping[int, int] | None = None,
               threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
  """Finds the most probable class of every voxel, however improbable, and its probability.

  Of equal probabilities the class that came first wins.

  Args:
    slabs: every class at every voxel exactly once.
    shape: spatial shape of the volume.
    class_ids: all classes in `slabs`.
    exclusive: treat classes and background as mutually exclusive:

          q_k = o_k / (1 + Σ_j o_j),   o_k = p_k / (1 - p_k)

      which is the softmax of the logits with a background logit of 0. The best class is the same.
    rank: class → 1 or more. Where such a class reaches the threshold, it wins over all classes of
      lower rank, e.g. a tumour over its liver.
    threshold: probability threshold; used by ranks only.

  Returns:
    Class id + 1 (see `label_dtype`) and probability (float32), both [*shape].
  """
  label = np.zeros(shape, label_dtype(class_ids))
  best = np.full(shape, -1.0, np.float32)
  sums = np.zeros(shape, np.float32) if exclusive else None
  rank = rank or {}
  for slab in slabs:
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      if exclusive:
        sums[slab.box] += odds(plane)
      if rank:  # the integer part encodes the rank; it is removed below
        plane = np.minimum(plane, 1)
        plane += rank.get(class_id, 0) * (plane >= threshold)
      better = plane > best[slab.box]
      label[slab.box][better] = class_id + 1
      np.maximum(best[slab.box], plane, out=best[slab.box])
  if rank:
    best -= np.maximum(np.ceil(best) - 1, 0)
  if exclusive:
    for row in range(len(best)):  # row by row, to avoid a second volume
      best[row] = odds(best[row]) / (1 + sums[row])
  return label, best


def label_map(masks_KS: np.ndarray, ids: Sequence[int]) -> np.ndarray:
  """Merges three-valued masks [K, *shape] into one label map for display.

  A voxel has the value id + 1 of the last class that is positive there, 255 where every mask is
  unlabelled, and 0 elsewhere.
  """
  out = np.zeros(masks_KS.shape[1:], np.uint16 if max(ids, default=0) >= 254 else np.uint8)
  if len(masks_KS):
    out[(masks_KS == UNLABELLED).all(0)] = UNLABELLED
  for mask, i in zip(masks_KS, ids, strict=True):
    out[mask == POSITIVE] = i + 1
  return out


def confidence(best: np.ndarray, score: np.ndarray, threshold: float) -> dict[int, float]:
  """Computes the mean probability of each class over the voxels where it reaches the threshold.

  Args:
    best: class id + 1 per voxel, from `best_class`.
    score: its probability, from `best_class`.
    threshold: probability threshold.

  Returns:
    Label value → mean, for classes with at least one voxel.
  """
  sums, counts = np.zeros((2, int(best.max(initial=0)) + 1))
  for labels, probability in zip(best, score, strict=True):  # row by row, to save memory
    inside = probability >= threshold
    sums += np.bincount(labels[inside], probability[inside], minlength=len(sums))
    counts += np.bincount(labels[inside], minlength=len(sums))
  return {int(value): float(sums[value] / counts[value]) for value in np.flatnonzero(counts)}


def ranks(within: Mapping[Hashable, Hashable]) -> dict[Hashable, int]:
  """Computes the nesting depth of each part: tumour within liver 1, necrosis within it 2.

  Args:
    within: class (id or name) → the class that contains it.

  Raises:
    InputError: a class contains itself, directly or through others.
  """
  depths = {}
  for part in within:
    depth, whole = 0, part
    while whole in within:
      depth, whole = depth + 1, within[whole]
      if depth > len(within):
        raise InputError("within", "a class is part of itself", "remove the cycle", usage=True)
    depths[part] = depth
  return depths


def odds(probability: np.ndarray) -> np.ndarray:
  """Returns p / (1 - p), with p clipped to [0, `CERTAIN`]."""
  p = np.clip(probability, 0, CERTAIN)
  return p / (1 - p)


def check_fusion(name: str) -> None:
  """Raises InputError for an unknown fusion."""
  if name not in FUSIONS:
    raise InputError(f"fusion {name!r}", "unknown fusion", f"one of {', '.join(FUSIONS)}",
                     usage=True)


def finite(slabs: Iterable[Slab]) -> Iterator[Slab]:
  """Passes slabs on.

  NaN compares as smaller than every threshold, so that it would otherwise become background.

  Raises:
    InputError: a probability is NaN.
  """
  for slab in slabs:
    if np.isnan(np.max(slab.planes, initial=0.0)):
      raise InputError("network", "computes probabilities that are NaN",
                       "use another checkpoint, or float32 where it was float16 or bfloat16")
    yield slab


def observed(slabs: Iterable[Slab], observers: Sequence[Observer]) -> Iterator[Slab]:
  """Shows slabs to observers, and passes them on."""
  for slab in slabs:
    for observer in observers:
      observer(slab)
    yield slab


# --- Calibration, by numbers fitted on training cases that the network did not see. Classes that
# were learned from different datasets are not equally sure of themselves, and compete.
class Scaling(NamedTuple):
  """Platt scaling of a class: the logit z of its probability becomes slope · z + intercept.

  Attributes:
    slope: above 0, so that the order of voxels within the class stays.
    intercept: what z = 0 becomes.
  """

  slope: float
  intercept: float

  def __call__(self, probability: np.ndarray) -> np.ndarray:
    """Returns calibrated probabilities, of the same type; 0 stays 0 and 1 stays 1."""
    with np.errstate(divide="ignore", over="ignore"):
      z = np.log(probability) - np.log1p(-probability)
      return 1 / (1 + np.exp(-(self.slope * z + self.intercept)))


def calibrated(slabs: Iterable[Slab], scalings: Mapping[int, Scaling]) -> Iterator[Slab]:
  """Calibrates probabilities, see `evaluate.calibration`.

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


# --- Location priors from the training masks, combined with the network's probabilities.
def with_priors(slabs: Iterable[Slab], shape: Sequence[int],
                location: Mapping[int, np.ndarray]) -> Iterator[Slab]:
  """Applies Bayes' rule to a network that was trained with classes at their mean frequency.

      o'_k(x) = o_k(x) · π_k(x) / π̄_k,   o = p / (1 - p)

  where π_k(x) is the frequency of class k at x and π̄_k its mean over the field of view. Classes
  without a location prior stay unchanged.

  Args:
    slabs: modified in place.
    shape: spatial shape of the volume.
    location: class → π_k / π̄_k on a coarse grid over the field of view (see `data.priors`);
      interpolated linearly between cell centres.

  Yields:
    The slabs.
  """
  for slab in slabs:
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      if class_id in location:
        posterior = odds(plane) * _interpolated(location[class_id], slab.box, shape)
        plane[...] = posterior / (1 + posterior)
    yield slab


def _interpolated(cells: np.ndarray, box: Sequence[slice], shape: Sequence[int]) -> np.ndarray:
  """Interpolates coarse cells at the voxels of a box; float32 [*box shape]."""
  values = np.asarray(cells, np.float32)
  for axis, (extent, size) in enumerate(zip(box, shape, strict=True)):
    position = (np.arange(extent.start, extent.stop) + 0.5) / size * cells.shape[axis] - 0.5
    position = np.clip(position, 0, cells.shape[axis] - 1)
    low = np.minimum(position.astype(np.intp), cells.shape[axis] - 2)
    weight = (position - low).astype(np.float32)
    weight = weight.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    values = values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
  return values


# --- How undecided the fused probabilities are.
ENTROPY_BYTES = 8  # per voxel, while a prediction is made


class Entropy:
  """The entropy of every voxel over the classes and the background, an observer of a prediction.

      H = -Σ q log₂ q

  with the exclusive q of `best_class`; of an ensemble, q is the mean of its members, so that H is
  large where one of them is undecided, and where they contradict each other (Shannon, 1948). With
  the odds o = p / (1 - p) of the classes, S = Σ o and T = Σ o ln o, the entropy in nats is
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
