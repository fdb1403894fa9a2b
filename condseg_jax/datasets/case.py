"""Prepares one raw case: canonical axes, target spacing, three-valued masks."""

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import Executor
import contextlib
import dataclasses
import json
import os
import threading

import numpy as np

from condseg_jax import resample
from condseg_jax.annotation import Annotation
from condseg_jax.data import store as store_lib
from condseg_jax.data.writer import CaseFacts
from condseg_jax.data.writer import finished_case
from condseg_jax.data.writer import Rows
from condseg_jax.data.writer import write_case
from condseg_jax.datasets.raw import Alteration
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.plan import channels_of

# Increase it when prepared arrays change, so that cases of earlier versions are prepared again.
VERSION = 2
ALTERED = 2  # likewise, when only altered masks change
DTYPES = {"ct": np.int16, "mr": np.float32, "rgb": np.uint8}
LIMITS = {"ct": (-32768, 32767), "rgb": (0, 255)}
PIECE = 1 << 18  # voxels that a thread resamples at a time: a slice of a CT


class Memory:
  """Bounds the memory of files being read by all threads: `share` times the largest one so far."""

  def __init__(self, share: float) -> None:
    self._share, self._largest, self._used = share, 0, 0
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def take(self, size: int) -> Iterator[None]:
    """Reserves `size` bytes, after waiting until they are available."""
    with self._changed:
      self._largest = max(self._largest, size)
      self._changed.wait_for(lambda: self._used + size <= self._share * self._largest)
      self._used += size
    try:
      yield
    finally:
      with self._changed:
        self._used -= size
        self._changed.notify_all()


def prepare_case(case: RawCase, folder: RawFolder, out: str | os.PathLike,
                 spacing: Sequence[float], memory: Memory, pool: Executor) -> store_lib.Case:
  """Prepares a case, unless the store contains it already, prepared from the same files.

  The image is in memory while its slabs are resampled and written, then each label map in turn.

  Args:
    case: the case.
    folder: the dataset of the case.
    out: folder of the store.
    spacing: target spacing along D, H, W in mm (H, W in pixels in 2-D).
    memory: limits the files that are in memory at a time.
    pool: executor for the slabs.

  Raises:
    InputError: the case is unusable.
  """
  alterations, source = _alterations(case, folder), source_of(case, folder, spacing)
  existing = finished_case(out, case.id, source)
  if existing is not None:
    return dataclasses.replace(existing, patient=case.group)  # which `source` does not cover
  header = files.read_header(case.image, case.series)
  native = header.geometry
  if native.ndim != len(spacing):
    raise InputError(case.image, f"has {native.ndim} axes, but the target spacing {len(spacing)}",
                     "give one number per axis")
  canonical = canonical_geometry(native)
  grid = resample.resampled_geometry(canonical, spacing)
  resample.check_size(case.image, grid)
  channels = channels_of(folder.modality)

  @contextlib.contextmanager
  def image() -> Iterator[Rows]:
    with memory.take(header.peak_bytes):
      array = to_canonical(files.read_volume(case.image, case.series)).array
      array = array if array.ndim > native.ndim else array[..., None]
      if array.shape[-1] != channels:
        raise InputError(case.image, f"has {array.shape[-1]} channels, but {folder.modality} "
                         f"images have {channels}", "convert the image")
      yield lambda rows: _image_rows(array, grid.shape, rows, folder.modality)

  def masks() -> Iterator[tuple[str, Rows]]:
    for label in case.labels:
      # An altered mask is in memory as a whole.
      whole = int(np.prod(grid.shape)) if alterations else 0
      with memory.take(files.read_header(label.path).peak_bytes + whole):
        volume = to_canonical(label.read(case.image, native))
        for name in label.annotation.classes:
          rows_of = _mask_rows(volume, grid, label.annotation, name)
          yield name, _altered(rows_of, grid, alterations, f"{case.id}/{name}")
        del volume, rows_of

  facts = CaseFacts(case.id, case.dataset, case.split, case.classes, canonical, source,
                    case.group)
  # An error in the middle of a mask must not keep its memory, for which other threads wait.
  with contextlib.closing(masks()) as prepared_masks:
    return write_case(out, facts, grid, image(), prepared_masks, channels=channels,
                      dtype=DTYPES[folder.modality], pool=pool)


def source_of(case: RawCase, folder: RawFolder, spacing: Sequence[float]) -> str:
  """Returns a key of everything on which a prepared case depends: files and settings."""
  changes = [[a.record_name, dataclasses.asdict(a), ALTERED]
             for a in _alterations(case, folder)]
  return ":".join([case.digest(), folder.modality, str(VERSION), str(store_lib.VERSION),
                   ",".join(f"{s:g}" for s in spacing), json.dumps(changes)])


def _alterations(case: RawCase, folder: RawFolder) -> tuple[Alteration, ...]:
  return folder.alterations if case.split == "train" else ()


def _image_rows(array: np.ndarray, shape: tuple[int, ...], rows: slice,
                modality: str) -> np.ndarray:
  """Computes rows of the resampled image, in the dtype of the modality."""
  out = np.empty((rows.stop - rows.start, *shape[1:], array.shape[-1]), DTYPES[modality])
  for piece in _pieces(rows, shape):
    source = resample.source_rows(array.shape, shape, piece)
    values = resample.resampled_rows(array[source], shape, 1, piece, array.shape[:-1])
    if modality in LIMITS:  # whole HU, 8-bit colours
      values = np.clip(np.rint(values, out=values), *LIMITS[modality], out=values)
    out[piece.start - rows.start:piece.stop - rows.start] = values
  return out


def _mask_rows(volume: Volume, grid: Geometry, annotation: Annotation, name: str) -> Rows:
  def rows_of(rows: slice) -> np.ndarray:
    out = np.empty((rows.stop - rows.start, *grid.shape[1:]), np.uint8)
    for piece in _pieces(rows, grid.shape):
      source = resample.source_rows(volume.array.shape, grid.shape, piece)
      mask = annotation.mask(volume.array[source], name)
      out[piece.start - rows.start:piece.stop - rows.start] = resample.resampled_rows(
          mask, grid.shape, 0, piece, volume.array.shape)
    return out
  return rows_of


def _altered(rows_of: Rows, grid: Geometry, alterations: Sequence[Alteration], name: str) -> Rows:
  if not alterations:
    return rows_of
  mask = rows_of(slice(0, grid.shape[0]))
  for alteration in alterations:
    mask = alteration.apply(mask, grid.spacing, name, in_place=True)
  return lambda rows: mask[rows]


def _pieces(rows: slice, shape: Sequence[int]) -> Iterator[slice]:
  step = max(1, PIECE // int(np.prod(shape[1:])))
  for start in range(rows.start, rows.stop, step):
    yield slice(start, min(start + step, rows.stop))
