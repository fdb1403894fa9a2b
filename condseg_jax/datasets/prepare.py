"""Prepares raw datasets as stores: canonical axes, one spacing, three-valued masks."""

from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import json
import os
from pathlib import Path

from etils import epath
import tqdm

from condseg_jax.classes import ClassTable
from condseg_jax.classes import sides
from condseg_jax.cluster.tasks import Cluster
from condseg_jax.cluster.tasks import each
from condseg_jax.cluster.tasks import in_order
from condseg_jax.data import store as store_lib
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.writer import write_manifest
from condseg_jax.datasets.case import Memory
from condseg_jax.datasets.case import prepare_case
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import validated
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import canonical_geometry
from condseg_jax.plan import pooled_spacing
from condseg_jax.system import buckets
from condseg_jax.system.allocator import lean_memory
from condseg_jax.system.atomic import write_text
from condseg_jax.system.lock import locked

SPACINGS = (1e-4, 1e3)  # mm, smallest and largest target spacing
WORKERS = 8  # maximal number of cases prepared at a time
SLAB_WORKERS = 16  # maximal number of threads that resample and compress; each needs some 50 MB
# Bound on the memory of all files being read, in units of the largest volume. Together with the
# slabs and the allocator's overhead the peak is below 3 volumes (benchmarks/input.json).
MEMORY_SHARE = 1.0


def median_spacing(folders: Sequence[RawFolder]) -> tuple[float, ...]:
  """Returns the median spacing of the training cases of all folders, D H W in mm, from headers."""
  if all(folder.modality == "rgb" for folder in folders):
    return (1.0, 1.0)
  training = [c for f in folders for c in f.cases if c.split == "train"]
  training = training or [c for f in folders for c in f.cases]
  return pooled_spacing([canonical_geometry(files.read_header(c.image, c.series).geometry).spacing
                         for c in training])


def prepare(folder: RawFolder, out: str | os.PathLike, spacing: Sequence[float] | None = None, *,
            overwrite: bool = True, progress: bool = True,
            cluster: Cluster | None = None) -> store_lib.Store:
  """Prepares every case of a dataset; cases already prepared from the same files are kept.

  Args:
    folder: the dataset.
    out: folder of the store.
    spacing: target spacing along D, H, W in mm (H, W in pixels for pictures); None for the median
      of the dataset.
    overwrite: replace a complete store that was prepared with other settings; False refuses it.
    progress: show a progress bar.
    cluster: whose workers prepare the cases; threads of this process by default.

  Raises:
    InputError: the first unusable case (the cases before it remain prepared), an invalid spacing,
      or with `overwrite=False` a store of other settings.
  """
  folder = validated(folder)
  spacing = tuple(map(float, spacing)) if spacing else median_spacing([folder])
  if not all(SPACINGS[0] <= s <= SPACINGS[1] for s in spacing):  # also refuses nan
    low, high = SPACINGS
    raise InputError("spacing", f"must be numbers in [{low:g}, {high:g}], not {_numbers(spacing)}",
                     "e.g. 3,1.5,1.5", usage=True)
  ids = [case.id for case in folder.cases]
  if len(set(ids)) < len(ids):
    duplicate = next(i for i in ids if ids.count(i) > 1)
    raise InputError(folder.root, f"two cases have the id {duplicate!r}", "rename one of them")
  buckets.connect(out)
  out = epath.Path(out)
  out.mkdir(parents=True, exist_ok=True)

  # Runs that start together must not prepare the same folder. A bucket has no locks.
  lock = contextlib.nullcontext() if buckets.is_bucket(out) else locked(Path(out) / ".lock")
  with lock, lean_memory():
    if not overwrite:
      _check_settings(folder, out, spacing)
    cases = _prepare_cases(folder, out, spacing, progress, cluster)
    _check_positives(folder, cases)
    no_mirror = sides(folder.classes) | dict(folder.no_mirror)
    table = ClassTable.create(
        folder.classes, no_mirror=no_mirror,
        capacity=max(64, len(folder.classes))) if folder.classes else ClassTable(())
    write_text(out / "fingerprint.json", json.dumps(fingerprint(cases), indent=1))
    return write_manifest(out, modality=folder.modality, spacing=spacing, table=table,
                          cases=cases, provenance=folder.provenance)


def _prepare_cases(folder: RawFolder, out: epath.Path, spacing: tuple[float, ...],
                   progress: bool, cluster: Cluster | None) -> list[store_lib.Case]:
  if cluster is not None:
    return _prepare_in_workers(folder, out, spacing, progress, cluster)
  # Threads suffice: decompression, resampling and compression release the interpreter's lock.
  cores = os.cpu_count() or 1
  memory = Memory(MEMORY_SHARE)
  with (concurrent.futures.ThreadPoolExecutor(min(SLAB_WORKERS, cores)) as slab_pool,
        concurrent.futures.ThreadPoolExecutor(min(WORKERS, cores)) as case_pool):
    jobs = [case_pool.submit(prepare_case, case, folder, out, spacing, memory, slab_pool)
            for case in folder.cases]
    with tqdm.tqdm(jobs, desc=f"preparing {folder.root.name}", disable=not progress) as bar:
      try:
        return [job.result() for job in bar]
      except BaseException:
        case_pool.shutdown(cancel_futures=True)
        raise


def _prepare_in_workers(folder: RawFolder, out: epath.Path, spacing: tuple[float, ...],
                        progress: bool, cluster: Cluster) -> list[store_lib.Case]:
  settings = dataclasses.replace(folder, cases=(), faults=())
  outcomes = each(cluster, prepare_alone, [(case, settings, os.fspath(out), spacing)
                                           for case in folder.cases],
                  [str(case.image) for case in folder.cases], shared=[out])
  cases = []
  for outcome in in_order((outcome.number, outcome) for outcome in tqdm.tqdm(
      outcomes, desc=f"preparing {folder.root.name}", total=len(folder.cases),
      disable=not progress)):
    if outcome.error is not None:
      raise outcome.error
    cases.append(outcome.value)
  return cases


def prepare_alone(case: RawCase, folder: RawFolder, out: str,
                  spacing: tuple[float, ...]) -> store_lib.Case:
  """Prepares a case of a `folder`, whose other cases are not needed, by itself."""
  buckets.connect(out)  # which a worker has not done
  with (lean_memory(), concurrent.futures.ThreadPoolExecutor(
      min(SLAB_WORKERS, os.cpu_count() or 1)) as slab_pool):
    return prepare_case(case, folder, out, spacing, Memory(MEMORY_SHARE), slab_pool)


def _check_settings(folder: RawFolder, out: epath.Path, spacing: tuple[float, ...]) -> None:
  """Raises InputError if `out` is a complete store that was prepared with other settings."""
  try:
    store = store_lib.Store.open(out)
  except InputError:
    return  # incomplete, damaged, or of another version: nothing that could be used
  differences = "; ".join(_differences(store, folder, spacing))
  if differences:
    raise InputError(out, f"was prepared with {differences}",
                     "choose another `out`, or replace the store with `overwrite`", usage=True)


def _differences(store: store_lib.Store, folder: RawFolder,
                 spacing: tuple[float, ...]) -> Iterator[str]:
  if store.modality != folder.modality:
    yield f"modality {store.modality} instead of {folder.modality}"
  if _numbers(store.spacing) != _numbers(spacing):
    yield f"spacing {_numbers(store.spacing)} instead of {_numbers(spacing)}"
  old, new = store.provenance, json.loads(json.dumps(folder.provenance))
  for key in dict.fromkeys((*old, *new)):
    if old.get(key) != new.get(key):
      yield f"{key} {_setting(old.get(key))} instead of {_setting(new.get(key))}"
  if old == new and store.table.names != folder.classes:
    yield f"classes {', '.join(store.table.names)} instead of {', '.join(folder.classes)}"
  old_ids, new_ids = [c.id for c in store.cases], [c.id for c in folder.cases]
  if old_ids and new_ids and set(old_ids).isdisjoint(new_ids):
    yield f"other cases, such as {old_ids[0]!r} instead of {new_ids[0]!r}"


def _numbers(spacing: Sequence[float]) -> str:
  return ",".join(f"{s:g}" for s in spacing)


def _setting(value: object) -> str:
  return "none" if value is None else json.dumps(value)


def _check_positives(folder: RawFolder, cases: Sequence[store_lib.Case]) -> None:
  """Raises InputError for a class that training cases annotate without a positive voxel."""
  training = [case for case in cases if case.split == "train"]
  for name in folder.classes:
    annotated = [case for case in training if name in case.annotated]
    if annotated and not any(case.positives[name] for case in annotated):
      raise InputError(folder.root, f"class {name!r} has no positive voxel in the "
                       f"{len(annotated)} training cases that annotate it",
                       "check its label value, or exclude the class")
