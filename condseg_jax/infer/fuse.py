"""Per-class probabilities to the best class of every voxel, in memory that knows no classes."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.infer.sliding_window import Slab

FUSIONS = ("argmax", "softmax", "independent")
CERTAIN = 1 - 1e-6  # odds are taken of probabilities up to this


def label_dtype(class_ids: Sequence[int]) -> type:
  """uint8, or uint16 where a label value passes 255."""
  return np.uint8 if max(class_ids) + 1 <= 255 else np.uint16


def best_class(slabs: Iterable[Slab], shape: Sequence[int], class_ids: Sequence[int], *,
               exclusive: bool = False, rank: Mapping[int, int] | None = None,
               threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
  """The most probable class of every voxel, however improbable, and its probability.

  Of equal probabilities the class that came first wins.

  Args:
    slabs: together every class at every voxel once.
    shape: of the volume.
    class_ids: all that come.
    exclusive: make classes and background alternatives, not questions apart:

          q_k = o_k / (1 + Σ_j o_j),   o_k = p_k / (1 - p_k)

      the softmax of the logits with a background logit of 0. It is the same class that is best.
    rank: class → 1 or more: where it reaches the threshold it wins over all classes of lower rank,
      as a tumour does over its liver.
    threshold: for ranks only.

  Returns:
    Class id + 1 and probability float32, both [*shape].
  """
  label = np.zeros(shape, label_dtype(class_ids))
  best = np.full(shape, -1.0, np.float32)
  sums = np.zeros(shape, np.float32) if exclusive else None
  rank = rank or {}
  for slab in slabs:
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      if exclusive:
        sums[slab.box] += odds(plane)
      if rank:  # an integer on top, which decides and is taken off again
        plane = np.minimum(plane, 1)
        plane += rank.get(class_id, 0) * (plane >= threshold)
      better = plane > best[slab.box]
      label[slab.box][better] = class_id + 1
      np.maximum(best[slab.box], plane, out=best[slab.box])
  if rank:
    best -= np.maximum(np.ceil(best) - 1, 0)
  if exclusive:
    for row in range(len(best)):  # one by one: no second volume
      best[row] = odds(best[row]) / (1 + sums[row])
  return label, best


def confidence(best: np.ndarray, score: np.ndarray, threshold: float) -> dict[int, float]:
  """The mean probability of every class that reaches the threshold somewhere, over those voxels.

  Args:
    best, score: of `best_class`.
    threshold: of the probability.

  Returns:
    Label value → mean.
  """
  sums, counts = np.zeros((2, int(best.max(initial=0)) + 1))
  for labels, probability in zip(best, score, strict=True):  # row by row: no second volume
    found = probability >= threshold
    sums += np.bincount(labels[found], probability[found], minlength=len(sums))
    counts += np.bincount(labels[found], minlength=len(sums))
  return {int(value): float(sums[value] / counts[value]) for value in np.flatnonzero(counts)}


def ranks(within: Mapping[int, int]) -> dict[int, int]:
  """How deep every part lies in what it is part of: tumour within liver 1, necrosis within it 2.

  Args:
    within: class → the class that it is part of.

  Raises:
    InputError: a class that is, in the end, part of itself.
  """
  found = {}
  for part in within:
    depth, whole = 0, part
    while whole in within:
      depth, whole = depth + 1, within[whole]
      if depth > len(within):
        raise InputError("within", "says that a class is part of itself", "name each part once",
                         usage=True)
    found[part] = depth
  return found


def odds(probability: np.ndarray) -> np.ndarray:
  """p / (1 - p), of certainty as of `CERTAIN`."""
  p = np.clip(probability, 0, CERTAIN)
  return p / (1 - p)


def check_fusion(name: str) -> None:
  """Raises InputError for a fusion that does not exist."""
  if name not in FUSIONS:
    raise InputError(f"fusion {name!r}", "is not known", f"one of {', '.join(FUSIONS)}", usage=True)


# --- What the training masks say of a place, joined to what the network says of the image.
def with_priors(slabs: Iterable[Slab], shape: Sequence[int],
                location: Mapping[int, np.ndarray]) -> Iterator[Slab]:
  """Bayes' rule for a network that was taught with classes at their average frequency.

      o'_k(x) = o_k(x) · π_k(x) / π̄_k,   o = p / (1 - p)

  where π_k(x) is the frequency of class k at x and π̄_k its mean over the field of view. Classes
  without a location are left as they are.

  Args:
    slabs: changed.
    shape: of the volume.
    location: class → π_k / π̄_k in cells of the field of view (see `data.priors`), between whose
      centres it is interpolated.
  """
  for slab in slabs:
    for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
      if class_id in location:
        changed = odds(plane) * _at(location[class_id], slab.box, shape)
        plane[...] = changed / (1 + changed)
    yield slab


def _at(cells: np.ndarray, box: Sequence[slice], shape: Sequence[int]) -> np.ndarray:
  """Cells interpolated to the voxels of a box, float32."""
  values = np.asarray(cells, np.float32)
  for axis, (part, size) in enumerate(zip(box, shape, strict=True)):
    place = (np.arange(part.start, part.stop) + 0.5) / size * cells.shape[axis] - 0.5
    place = np.clip(place, 0, cells.shape[axis] - 1)
    low = np.minimum(place.astype(np.intp), cells.shape[axis] - 2)
    weight = (place - low).astype(np.float32)
    weight = weight.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    values = values.take(low, axis) * (1 - weight) + values.take(low + 1, axis) * weight
  return values
