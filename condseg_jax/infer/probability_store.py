"""Probabilities of all classes on disk: in memory they would be K times the volume."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import shutil
import tempfile
import weakref

from etils import epath
import numpy as np

from condseg_jax.data.store import create_array
from condseg_jax.infer.sliding_window import Slab

CHUNK = 32  # voxels along each axis, at most


class ProbabilityStore:
  """Probabilities [K, *shape] as float16 in zarr v3, written slab by slab and read row by row.

  Args:
    folder: that holds the array afterwards; when None a temporary one that goes with the object.
    class_ids: in the order of the planes.
    shape: of the volume.
    attributes: kept with the array.
  """

  def __init__(self, folder: str | None, class_ids: Sequence[int], shape: Sequence[int],
               attributes: Mapping | None = None):
    if folder is None:
      folder = tempfile.mkdtemp(prefix="condseg-")
      weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
    self.class_ids, self.shape = tuple(class_ids), tuple(shape)
    chunk = (1, *(min(CHUNK, n) for n in self.shape))
    self._array = create_array(epath.Path(folder), [len(self.class_ids), *self.shape], np.float16,
                               chunk, attributes)

  def keep(self, slabs: Iterable[Slab]) -> Iterator[Slab]:
    """Keeps what slabs hold and passes them on, rounded as they are kept."""
    for slab in slabs:
      for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
        rounded = plane.astype(np.float16)
        self._array[(self.class_ids.index(class_id), *slab.box)].write(rounded).result()
        plane[...] = rounded
      yield slab

  def rows(self, class_id: int, rows: slice) -> np.ndarray:
    """Some rows of a class, float32."""
    found = self._array[self.class_ids.index(class_id), rows].read().result()
    return np.asarray(found, np.float32)
