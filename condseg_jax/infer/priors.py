"""What the training masks say of a place, joined to what the network says of the image."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from condseg_jax.infer.fuse import odds
from condseg_jax.infer.predict import Slab


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
