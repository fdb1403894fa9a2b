"""Raw files to a prepared store: canonical axes, one spacing, three-valued masks."""

from collections.abc import Iterator
from collections.abc import Sequence
import concurrent.futures
import contextlib
import fcntl
import json
import os

from etils import epath
import numpy as np
import tqdm

from condseg_jax.classes import ClassTable
from condseg_jax.classes import sides
from condseg_jax.data import store as store_lib
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.writer import write_manifest
from condseg_jax.datasets.case import Memory
from condseg_jax.datasets.case import prepare_case
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import ready
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import canonical_geometry
from condseg_jax.plan import pooled_spacing
from condseg_jax.system.allocator import lean_memory
from condseg_jax.system.atomic import write_text

WORKERS = 8  # cases at a time, at most
SLAB_WORKERS = 16  # threads that resample and compress, at most; each needs some 50 MB
# All cases at work read at most so many times the largest volume. With the slabs in work, and with
# what the allocator keeps, the peak stays below 3 volumes (benchmarks/input.json).
MEMORY_SHARE = 1.0


def median_spacing(folders: Sequence[RawFolder]) -> tuple[float, ...]:
  """Median spacing over the training cases of all folders, D H W in mm, from headers alone."""
  if all(folder.modality == "rgb" for folder in folders):
    return (1.0, 1.0)
  training = [c for f in folders for c in f.cases if c.split == "train"]
  training = training or [c for f in folders for c in f.cases]
  return pooled_spacing([canonical_geometry(files.read_header(c.image, c.series).geometry).spacing
                         for c in training])


def prepare(folder: RawFolder, out, spacing: Sequence[float] | None = None, *,
            progress: bool = True) -> store_lib.Store:
  """Prepares every case of a folder; cases that are already there from the same files are kept.

  Args:
    folder: what an importer found.
    out: folder of the store.
    spacing: target spacing along D, H, W in mm (H, W in pixels for pictures); None for the
      folder's own median.
    progress: show a progress bar.

  Raises:
    InputError: on the first case that is not usable; those before it stay prepared.
  """
  folder = ready(folder)
  spacing = tuple(map(float, spacing)) if spacing else median_spacing([folder])
  if not all(np.isfinite(s) and s > 0 for s in spacing):
    raise InputError("spacing", f"{spacing} is no spacing", "give positive numbers", usage=True)
  ids = [case.id for case in folder.cases]
  if len(set(ids)) < len(ids):
    doubled = next(i for i in ids if ids.count(i) > 1)
    raise InputError(folder.root, f"two cases are called {doubled!r}", "rename one of them")
  out = epath.Path(out)
  out.mkdir(parents=True, exist_ok=True)

  with _alone(out), lean_memory():
    cases = _prepare_cases(folder, out, spacing, progress)
    _check_positives(folder, cases)
    no_mirror = sides(folder.classes) | dict(folder.no_mirror)
    table = ClassTable.create(folder.classes, no_mirror=no_mirror,
                              capacity=max(64, len(folder.classes)))
    write_text(out / "fingerprint.json", json.dumps(fingerprint(cases), indent=1))
    return write_manifest(out, modality=folder.modality, spacing=spacing, table=table,
                          cases=cases, recipe=folder.recipe)


@contextlib.contextmanager
def _alone(out: epath.Path) -> Iterator[None]:
  """Keeps other processes from preparing into the same folder, as runs started together would.

  A process that dies lets go. A bucket has no locks.
  """
  if "://" in str(out):
    yield
    return
  with open(out / ".lock", "w") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    yield


def _prepare_cases(folder: RawFolder, out, spacing, progress: bool) -> list[store_lib.Case]:
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


def _check_positives(folder: RawFolder, cases: Sequence[store_lib.Case]) -> None:
  """A class that is annotated in training cases and shows in none cannot be learned."""
  training = [case for case in cases if case.split == "train"]
  for name in folder.classes:
    with_class = [case for case in training if name in case.annotated]
    if with_class and not any(case.positives[name] for case in with_class):
      raise InputError(folder.root, f"class {name!r} has no positive voxel in the "
                       f"{len(with_class)} training cases that annotate it",
                       "check its label value, or leave the class out with --keep")
