"""Writes a prepared store slab by slab, so that no case is in memory as a whole.

A slab is one chunk thick along the first axis. Random samples are drawn per slab, each with its own
generator, and merged, so that the result does not depend on the order of the threads.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import Executor
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from typing import NamedTuple

from etils import epath
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from condseg_jax.classes import ClassTable
from condseg_jax.classes import POSITIVE
from condseg_jax.data.store import Case
from condseg_jax.data.store import chunk_shape
from condseg_jax.data.store import clear_array_cache
from condseg_jax.data.store import combined_digest
from condseg_jax.data.store import create_array
from condseg_jax.data.store import MANIFEST
from condseg_jax.data.store import slabs
from condseg_jax.data.store import Store
from condseg_jax.data.store import VERSION
from condseg_jax.errors import InputError
from condseg_jax.geometry import Geometry
from condseg_jax.system.atomic import write_text

FOREGROUND_POSITIONS = 64
INTENSITY_SAMPLE = 500
# Two classes overlap where they share at least this part of the smaller mask. Masks that were drawn
# one by one share some voxels along a border even if one voxel cannot be both.
OVERLAP = 0.01

# Computes or copies rows [rows, ...] of an array on demand.
Rows = Callable[[slice], np.ndarray]


class CaseFacts(NamedTuple):
  """The metadata of a case; see `Case`."""

  id: str
  dataset: str
  split: str
  annotated: tuple[str, ...]
  native: Geometry
  source: str
  patient: str | None = None
  pseudo: tuple[str, ...] = ()


class Sample(NamedTuple):
  """A sample of the positive voxels of a slab or a mask."""

  count: int  # of all positive voxels
  index: np.ndarray  # [n, axes], in random order
  intensity: np.ndarray  # [n]


def write_case(root: str | os.PathLike, facts: CaseFacts, grid: Geometry,
               image: contextlib.AbstractContextManager[Rows],
               masks: Iterable[tuple[str, Rows]], *, channels: int, dtype: npt.DTypeLike,
               pool: Executor) -> Case:
  """Writes one case; readers see it once it is complete.

  Removes the manifest; `write_manifest` writes it again.

  Args:
    root: folder of the store.
    facts: metadata; the id consists of letters, digits, `.`, `_` and `-`.
    grid: grid of the prepared image.
    image: context manager, entered once, that yields the `Rows` of the image
      [rows, ..., channels] of `dtype`; it is left before the first mask is requested.
    masks: class and `Rows` of its three-valued mask, in the order of `facts.annotated` and then of
      `facts.pseudo`; each is written before the next is requested.
    channels: of the image.
    dtype: see `channels`.
    pool: executor for the slabs.

  Raises:
    InputError: the id cannot be a folder name.
  """
  if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", facts.id):
    raise InputError(f"case {facts.id!r}", "cannot be used as a folder name",
                     "rename the file; use letters, digits, '.', '_' and '-'")
  folder = epath.Path(root) / "cases" / facts.id
  # The files that mark the arrays as complete go first: the process may be killed at any time.
  (epath.Path(root) / MANIFEST).unlink(missing_ok=True)
  (folder / "case.json").unlink(missing_ok=True)
  if folder.exists():
    folder.rmtree()
  folder.mkdir(parents=True)
  clear_array_cache()

  chunk = chunk_shape(grid.ndim)
  images = create_array(folder / "image", (*grid.shape, channels), dtype, (*chunk, channels))
  with image as rows_of:
    written = list(pool.map(functools.partial(_write_image, images, rows_of), slabs(grid.shape)))
  del rows_of  # frees the image
  mean, sd = _moments([moments for _, *moments in written])
  image_digests = [digest for digest, *_ in written]
  mask_digests: list[str] = []
  samples: dict[str, Sample] = {}

  names = (*facts.annotated, *facts.pseudo)
  stored = create_array(folder / "masks", (len(names), *grid.shape), np.uint8, (1, *chunk))
  for number, (name, rows_of) in enumerate(masks):
    slab_samples = list(pool.map(
        functools.partial(_write_mask, stored[number], images, rows_of, f"{facts.id}/{name}"),
        slabs(grid.shape)))
    mask_digests += [digest for digest, _ in slab_samples]
    samples[name] = _merged([sample for _, sample in slab_samples], _generator(facts.id, name))
    del rows_of  # frees the label map before the next is read
  if tuple(samples) != names:
    raise ValueError(f"got masks of {tuple(samples)}, expected {names}")
  # What describes the data is of annotated classes alone.
  pseudo = {name: samples.pop(name) for name in facts.pseudo}
  overlapping = (_overlapping(stored[:len(samples)], facts.annotated, pool) if len(samples) > 1
                 else ())

  everything = _merged(list(samples.values()), _generator(facts.id))
  case = Case(
      id=facts.id, dataset=facts.dataset, split=facts.split, annotated=facts.annotated,
      shape=grid.shape, affine=tuple(map(tuple, grid.affine.tolist())),
      native_shape=facts.native.shape, native_spacing=facts.native.spacing, mean=mean, sd=sd,
      positives={name: sample.count for name, sample in samples.items()},
      foreground=_foreground(samples),
      intensities=tuple(float(f"{v:.6g}") for v in everything.intensity),
      image_sha256=combined_digest(np.dtype(dtype), (*grid.shape, channels), image_digests),
      sha256=combined_digest(np.dtype(dtype), (*grid.shape, channels),
                             [*image_digests, *mask_digests]),
      source=facts.source, overlapping=overlapping, patient=facts.patient,
      pseudo=_foreground(pseudo))
  write_text(folder / "case.json", json.dumps(dataclasses.asdict(case)))
  return case


def finished_case(root: str | os.PathLike, case_id: str, source: str) -> Case | None:
  """Returns the record of a case that is complete and of the same `source`, else None."""
  path = epath.Path(root) / "cases" / case_id / "case.json"
  if not path.exists():
    return None
  try:
    case = Case.from_json(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, KeyError, TypeError, AttributeError):
    return None  # damaged, or of another version
  unknown = case.overlapping is None and len(case.annotated) > 1  # prepared by version 0.1
  return case if case.source == source and not unknown else None


def write_manifest(root: str | os.PathLike, *, modality: str, spacing: Sequence[float],
                   table: ClassTable, cases: Sequence[Case],
                   provenance: Mapping[str, object] | None = None) -> Store:
  """Writes the manifest, which makes the store complete, and opens it; see `Store`."""
  cases = sorted(cases, key=lambda c: c.id)
  tree = {"version": VERSION, "modality": modality, "spacing": [float(s) for s in spacing],
          "recipe": dict(provenance or {}), "table": table.to_json(),
          "cases": [dataclasses.asdict(c) for c in cases]}
  write_text(epath.Path(root) / MANIFEST, json.dumps(tree, indent=1))
  return Store.open(root)


def _write_image(target: ts.TensorStore, rows_of: Rows,
                 rows: slice) -> tuple[str, int, float, float]:
  """Writes a slab; returns its digest, size, mean and sum of squared deviations."""
  slab = np.ascontiguousarray(rows_of(rows))
  target[rows].write(slab).result()
  mean = slab.mean(dtype=np.float64)
  # Plane by plane, which avoids a float64 copy of the slab.
  squares = sum(float(np.square(plane - mean, dtype=np.float64).sum()) for plane in slab)
  return hashlib.sha256(slab).hexdigest(), slab.size, float(mean), squares


def _foreground(samples: Mapping[str, Sample]) -> dict[str, tuple[tuple[int, ...], ...]]:
  return {name: tuple(map(tuple, sorted(s.index[:FOREGROUND_POSITIONS].tolist())))
          for name, s in samples.items()}


def _moments(moments: Sequence[Sequence[float]]) -> tuple[float, float]:
  """Returns mean and sd of an array from (size, mean, sum of squared deviations) of its slabs."""
  count, means, squares = (np.array(column, np.float64) for column in zip(*moments, strict=True))
  mean = float((count * means).sum() / count.sum())
  spread = squares.sum() + (count * (means - mean) ** 2).sum()
  return mean, float(np.sqrt(spread / count.sum()))


def _write_mask(target: ts.TensorStore, images: ts.TensorStore, rows_of: Rows, key: str,
                rows: slice) -> tuple[str, Sample]:
  """Writes a slab; returns its digest, and a sample of its positive voxels (seeded by `key`)."""
  rng = _generator(key, rows.start)
  slab = np.ascontiguousarray(rows_of(rows))
  target[rows].write(slab).result()
  counts = [int(np.count_nonzero(plane == POSITIVE)) for plane in slab]
  count = sum(counts)
  index, intensity = np.zeros((0, slab.ndim), np.int64), np.zeros(0)
  if count:
    rank = rng.choice(count, min(INTENSITY_SAMPLE, count), replace=False)
    position = tuple(_positions(slab, counts, rank).T)
    intensity = images[rows].read().result()[position].mean(axis=-1, dtype=np.float64)
    index = np.stack(position, -1) + [rows.start, *[0] * (slab.ndim - 1)]
  return hashlib.sha256(slab).hexdigest(), Sample(count, index, intensity)


def _overlapping(masks: ts.TensorStore, names: Sequence[str],
                 pool: Executor) -> tuple[tuple[str, str], ...]:
  """Returns the pairs of classes whose stored masks [K, *shape] overlap; see `OVERLAP`."""
  shared = sum(pool.map(functools.partial(_shared, masks), slabs(masks.shape[1:])))
  size = np.diag(shared)
  pairs = np.argwhere(np.triu(shared >= np.maximum(1, OVERLAP * np.minimum(size[:, None], size)),
                              1))
  return tuple(sorted((min(names[i], names[j]), max(names[i], names[j])) for i, j in pairs))


def _shared(masks: ts.TensorStore, rows: slice) -> np.ndarray:
  """Counts the positive voxels that two masks share in a slab, [K, K]; one mask in memory."""
  read = lambda k: masks[k, rows].read().result() == POSITIVE
  count, sizes = np.zeros((rows.stop - rows.start, *masks.shape[2:]), np.uint16), []
  for k in range(masks.shape[0]):
    mask = read(k)
    count += mask
    sizes.append(int(np.count_nonzero(mask)))
  several = count > 1
  if not several.any():
    return np.diag(sizes)
  inside = np.stack([read(k)[several] for k in range(masks.shape[0])]).astype(np.float32)
  shared = np.rint(inside @ inside.T).astype(np.int64)
  np.fill_diagonal(shared, sizes)
  return shared


def _positions(slab: np.ndarray, counts: Sequence[int], rank: np.ndarray) -> np.ndarray:
  """Returns the indices [n, axes] of the positive voxels of given ranks, plane by plane."""
  index = np.zeros((len(rank), slab.ndim), np.int64)
  ends = np.cumsum(counts)
  planes = np.searchsorted(ends, rank, side="right")
  for plane in np.unique(planes):
    selected = planes == plane
    flat = np.flatnonzero(slab[plane] == POSITIVE)[rank[selected] - (ends[plane] - counts[plane])]
    index[selected, 0] = plane
    index[selected, 1:] = np.stack(np.unravel_index(flat, slab.shape[1:]), -1)
  return index


def _merged(samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
  """Merges samples of slabs or masks so that every positive voxel is equally likely."""
  if not samples:
    return Sample(0, np.zeros((0, 0), np.int64), np.zeros(0))
  counts = [s.count for s in samples]
  total = sum(counts)
  # Each sample is in random order, so that its first n elements are a sample, too.
  taken = rng.multivariate_hypergeometric(counts, min(INTENSITY_SAMPLE, total))
  index = np.concatenate([s.index[:n] for s, n in zip(samples, taken, strict=True)])
  intensity = np.concatenate([s.intensity[:n] for s, n in zip(samples, taken, strict=True)])
  order = rng.permutation(len(index))
  return Sample(total, index[order], intensity[order])


def _generator(*key: object) -> np.random.Generator:
  digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8]))
