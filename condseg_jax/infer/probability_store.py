"""Keeps the probabilities of all classes on disk, since in memory they would be K volumes."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import re
import shutil
import tempfile
import weakref

from etils import epath
import numpy as np
import tensorstore as ts

from condseg_jax.data.store import create_array
from condseg_jax.data.store import kvstore
from condseg_jax.errors import InputError
from condseg_jax.infer.sliding_window import Slab

CHUNK = 32  # voxels along each axis, at most


class ProbabilityStore:
  """Probabilities [K, *shape] as float16 in zarr v3, written slab by slab and read by rows.

  Args:
    folder: of the array; a temporary folder that is removed with this object when None.
    class_ids: in the order of the array's first axis.
    shape: spatial shape of the volume.
    attributes: metadata stored with the array.

  Raises:
    InputError: the array cannot be written.
  """

  def __init__(self, folder: str | os.PathLike | None, class_ids: Sequence[int],
               shape: Sequence[int], attributes: Mapping | None = None):
    self._temporary = folder is None
    if folder is None:
      folder = tempfile.mkdtemp(prefix="condseg-")
      weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
    self._folder = epath.Path(folder)
    self.class_ids, self.shape = tuple(class_ids), tuple(shape)
    chunk = (1, *(min(CHUNK, n) for n in self.shape))
    with self._write_errors():
      self._array = create_array(self._folder, [len(self.class_ids), *self.shape], np.float16,
                                 chunk, attributes)

  def keep(self, slabs: Iterable[Slab]) -> Iterator[Slab]:
    """Stores slabs and passes them on, rounded to the stored precision.

    Raises:
      InputError: a slab cannot be written, e.g. because the disk is full.
    """
    for slab in slabs:
      for class_id, plane in zip(slab.class_ids, slab.planes, strict=True):
        rounded = plane.astype(np.float16)
        with self._write_errors():
          self._array[(self.class_ids.index(class_id), *slab.box)].write(rounded).result()
        plane[...] = rounded
      yield slab

  def rows(self, class_id: int, rows: slice) -> np.ndarray:
    """Reads some rows of a class, float32."""
    block = self._array[self.class_ids.index(class_id), rows].read().result()
    return np.asarray(block, np.float32)

  @contextlib.contextmanager
  def _write_errors(self) -> Iterator[None]:
    """Turns the errors of TensorStore, which are ValueErrors, into an InputError."""
    try:
      yield
    except (ValueError, OSError) as error:
      other = "set TMPDIR to a larger disk" if self._temporary else "choose another folder"
      raise InputError(self._folder, f"the probabilities cannot be written: {_cause(error)}",
                       f"free space in {self._folder.parent}, or {other}") from error


def read_probability(folder: str | os.PathLike, name: str,
                     box: Sequence[slice] = ()) -> np.ndarray:
  """Reads the probability of a class from a store that a prediction has left, or a box of it.

  Args:
    folder: of the store, `infer.settings.Settings.probabilities` of the prediction.
    name: the class.
    box: one slice per axis; the whole volume when empty.

  Returns:
    float32 [*shape], with the precision of float16.

  Raises:
    InputError: the store is missing or damaged, or has no such class.
  """
  folder = epath.Path(folder)
  try:
    classes = json.loads((folder / "zarr.json").read_text(encoding="utf-8")
                         )["attributes"]["classes"]
    if name in classes:
      array = ts.open({"driver": "zarr3", "kvstore": kvstore(folder)}, read=True).result()
      block = array[(classes.index(name), *box, ...)].read().result()
      return np.asarray(block, np.float32)
  except (ValueError, OSError, KeyError, TypeError) as error:
    raise InputError(folder, f"the probabilities cannot be read: {_cause(error)}",
                     "predict again") from error
  raise InputError(folder, f"has no class {name!r}", f"classes: {', '.join(classes)}", usage=True)


def _cause(error: Exception) -> str:
  """Returns the operating system's message in a TensorStore error, else its first line."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else str(error).splitlines()[0].split(" [")[0]
