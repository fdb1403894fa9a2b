"""Writing a prepared store, slab by slab, so that no case is ever in memory as a whole.

A slab is one row of chunks along the first axis. Whatever is drawn at random is drawn per slab with
numbers of its own and merged, so that the result does not depend on threads.
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
import re
from typing import NamedTuple

from etils import epath
import numpy as np
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

# Rows of an array, [rows, ...], computed or copied when they are asked for.
Rows = Callable[[slice], np.ndarray]


class CaseFacts(NamedTuple):
  """What is known of a case besides its voxels; see `Case`."""

  id: str
  dataset: str
  split: str
  annotated: tuple[str, ...]
  native: Geometry
  source: str


class Sample(NamedTuple):
  """Some of the positive voxels of a slab or a mask, and how many there are in all."""

  count: int
  index: np.ndarray  # [n, axes], in random order
  intensity: np.ndarray  # [n]


def write_case(root, facts: CaseFacts, grid: Geometry, image: contextlib.AbstractContextManager,
               masks: Iterable[tuple[str, Rows]], *, channels: int, dtype,
               pool: Executor) -> Case:
  """Writes one case; it exists for readers only once everything of it is written.

  The store has no manifest from here until `write_manifest`.

  Args:
    root: folder of the store.
    facts: its id is letters, digits, `.`, `_`, `-`.
    grid: of the prepared image.
    image: entered once, gives the `Rows` of the image [rows, ..., channels] of `dtype`; left before
      the first mask is asked for.
    masks: class → `Rows` of its three-valued mask, in the order of `facts.annotated`; each is used
      up before the next is asked for.
    channels, dtype: of the image.
    pool: works on the slabs.
  """
  if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", facts.id):
    raise InputError(f"case {facts.id!r}", "cannot be a folder name",
                     "rename the file: letters, digits, '.', '_', '-'")
  folder = epath.Path(root) / "cases" / facts.id
  # First what says that the arrays are whole: a kill may come at any time.
  (epath.Path(root) / MANIFEST).unlink(missing_ok=True)
  (folder / "case.json").unlink(missing_ok=True)
  if folder.exists():
    folder.rmtree()
  folder.mkdir(parents=True)
  clear_array_cache()

  chunk = chunk_shape(grid.ndim)
  images = create_array(folder / "image", (*grid.shape, channels), dtype, (*chunk, channels))
  with image as rows_of:
    parts = list(pool.map(functools.partial(_write_image, images, rows_of), slabs(grid.shape)))
  del rows_of  # and the image with it
  mean, sd = _moments([p[1:] for p in parts])
  image_digests, mask_digests, samples = [p[0] for p in parts], [], {}

  stored = create_array(folder / "masks", (len(facts.annotated), *grid.shape), np.uint8,
                        (1, *chunk))
  for number, (name, rows_of) in enumerate(masks):
    parts = list(pool.map(
        functools.partial(_write_mask, stored[number], images, rows_of, f"{facts.id}/{name}"),
        slabs(grid.shape)))
    mask_digests += [digest for digest, _ in parts]
    samples[name] = _merged([sample for _, sample in parts], _generator(facts.id, name))
    del rows_of  # and the label map with them, before the next is read
  if tuple(samples) != facts.annotated:
    raise ValueError(f"masks of {tuple(samples)} for the classes {facts.annotated}")

  everything = _merged(list(samples.values()), _generator(facts.id))
  case = Case(
      id=facts.id, dataset=facts.dataset, split=facts.split, annotated=facts.annotated,
      shape=grid.shape, affine=tuple(map(tuple, grid.affine.tolist())),
      native_shape=facts.native.shape, native_spacing=facts.native.spacing, mean=mean, sd=sd,
      positives={name: sample.count for name, sample in samples.items()},
      foreground={name: tuple(map(tuple, sorted(s.index[:FOREGROUND_POSITIONS].tolist())))
                  for name, s in samples.items()},
      intensities=tuple(float(f"{v:.6g}") for v in everything.intensity),
      image_sha256=combined_digest(np.dtype(dtype), (*grid.shape, channels), image_digests),
      sha256=combined_digest(np.dtype(dtype), (*grid.shape, channels),
                             [*image_digests, *mask_digests]),
      source=facts.source)
  write_text(folder / "case.json", json.dumps(dataclasses.asdict(case)))
  return case


def finished_case(root, case_id: str, source: str) -> Case | None:
  """The record of a case that is already written whole from the same source, else None."""
  path = epath.Path(root) / "cases" / case_id / "case.json"
  if not path.exists():
    return None
  try:
    case = Case.from_json(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, KeyError, TypeError, AttributeError):
    return None  # damaged, or of another version
  return case if case.source == source else None


def write_manifest(root, *, modality: str, spacing: Sequence[float], table: ClassTable,
                   cases: Sequence[Case], recipe: Mapping[str, object] | None = None) -> Store:
  """Finishes a store. Before this it cannot be opened."""
  cases = sorted(cases, key=lambda c: c.id)
  tree = {"version": VERSION, "modality": modality, "spacing": [float(s) for s in spacing],
          "recipe": dict(recipe or {}), "table": table.to_json(),
          "cases": [dataclasses.asdict(c) for c in cases]}
  write_text(epath.Path(root) / MANIFEST, json.dumps(tree, indent=1))
  return Store.open(root)


def _write_image(target: ts.TensorStore, rows_of: Rows, rows: slice):
  """Writes a slab; its digest, count, mean and sum of squared deviations."""
  part = np.ascontiguousarray(rows_of(rows))
  target[rows].write(part).result()
  mean = part.mean(dtype=np.float64)
  # In planes, so that no slab of float64 is made.
  squares = sum(float(np.square(plane - mean, dtype=np.float64).sum()) for plane in part)
  return hashlib.sha256(part).hexdigest(), part.size, float(mean), squares


def _moments(parts: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
  """Mean and sd of a whole from (count, mean, sum of squared deviations) of its parts."""
  count, means, squares = (np.array(column, np.float64) for column in zip(*parts, strict=True))
  mean = float((count * means).sum() / count.sum())
  spread = squares.sum() + (count * (means - mean) ** 2).sum()
  return mean, float(np.sqrt(spread / count.sum()))


def _write_mask(target: ts.TensorStore, images: ts.TensorStore, rows_of: Rows, key: str,
                rows: slice) -> tuple[str, Sample]:
  """Writes a slab; its digest, and a sample of its positive voxels drawn by `key`."""
  rng = _generator(key, rows.start)
  part = np.ascontiguousarray(rows_of(rows))
  target[rows].write(part).result()
  counts = [int(np.count_nonzero(plane == POSITIVE)) for plane in part]
  count = sum(counts)
  index, intensity = np.zeros((0, part.ndim), np.int64), np.zeros(0)
  if count:
    rank = rng.choice(count, min(INTENSITY_SAMPLE, count), replace=False)
    place = tuple(_located(part, counts, rank).T)
    intensity = images[rows].read().result()[place].mean(axis=-1, dtype=np.float64)
    index = np.stack(place, -1) + [rows.start, *[0] * (part.ndim - 1)]
  return hashlib.sha256(part).hexdigest(), Sample(count, index, intensity)


def _located(part: np.ndarray, counts: Sequence[int], rank: np.ndarray) -> np.ndarray:
  """Indices [n, axes] of the positive voxels of given ranks; of one plane at a time."""
  index = np.zeros((len(rank), part.ndim), np.int64)
  ends = np.cumsum(counts)
  planes = np.searchsorted(ends, rank, side="right")
  for plane in np.unique(planes):
    mine = planes == plane
    flat = np.flatnonzero(part[plane] == POSITIVE)[rank[mine] - (ends[plane] - counts[plane])]
    index[mine, 0] = plane
    index[mine, 1:] = np.stack(np.unravel_index(flat, part.shape[1:]), -1)
  return index


def _merged(samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
  """A sample of several parts in which every positive voxel has the same chance."""
  counts = [s.count for s in samples]
  total = sum(counts)
  # Each part's sample is in random order, so that its beginning is a sample, too.
  taken = rng.multivariate_hypergeometric(counts, min(INTENSITY_SAMPLE, total))
  index = np.concatenate([s.index[:n] for s, n in zip(samples, taken, strict=True)])
  intensity = np.concatenate([s.intensity[:n] for s, n in zip(samples, taken, strict=True)])
  order = rng.permutation(len(index))
  return Sample(total, index[order], intensity[order])


def _generator(*key) -> np.random.Generator:
  digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8]))
