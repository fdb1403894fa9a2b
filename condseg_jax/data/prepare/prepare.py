"""Raw files to a prepared store: canonical axes, one spacing, three-valued masks."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import fcntl
import os

from etils import epath
import numpy as np
import tqdm

from condseg_jax.classes import ClassTable
from condseg_jax.data import store as store_lib
from condseg_jax.data.prepare.raw import RawCase
from condseg_jax.data.prepare.raw import RawFolder
from condseg_jax.errors import InputError
from condseg_jax.formats import nifti
from condseg_jax.formats import resample
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.plan import pooled_spacing

# Raise it when prepared arrays change, so that stores made before are not taken for current ones.
VERSION = 1
WORKERS = 8  # at most; each holds a whole volume and its masks


def median_spacing(folders: Sequence[RawFolder]) -> tuple[float, ...]:
  """Median spacing over the training cases of all folders, D H W in mm, from headers alone."""
  if all(folder.modality == "rgb" for folder in folders):
    return (1.0, 1.0)
  training = [c for f in folders for c in f.cases if c.split == "train"]
  training = training or [c for f in folders for c in f.cases]
  return pooled_spacing([canonical_geometry(nifti.read_geometry(c.image)).spacing
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
  spacing = tuple(map(float, spacing)) if spacing else median_spacing([folder])
  if not all(np.isfinite(s) and s > 0 for s in spacing):
    raise InputError("spacing", f"{spacing} is no spacing", "give positive numbers", usage=True)
  ids = [case.id for case in folder.cases]
  if len(set(ids)) < len(ids):
    doubled = next(i for i in ids if ids.count(i) > 1)
    raise InputError(folder.root, f"two cases are called {doubled!r}", "rename one of them")
  out = epath.Path(out)
  out.mkdir(parents=True, exist_ok=True)

  with _alone(out):
    cases = _prepare_cases(folder, out, spacing, progress)
    table = ClassTable.create(folder.classes, no_mirror=folder.no_mirror,
                              capacity=max(64, len(folder.classes)))
    return store_lib.write_manifest(out, modality=folder.modality, spacing=spacing, table=table,
                                    cases=cases)


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
  with concurrent.futures.ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
    jobs = [pool.submit(_prepare_case, case, out, folder.modality, spacing)
            for case in folder.cases]
    with tqdm.tqdm(jobs, desc=f"preparing {folder.root.name}", disable=not progress) as bar:
      try:
        return [job.result() for job in bar]
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _prepare_case(case: RawCase, out, modality: str, spacing) -> store_lib.Case:
  source = ":".join([case.digest(), modality, str(VERSION), str(store_lib.VERSION),
                     ",".join(f"{s:g}" for s in spacing)])
  done = store_lib.finished_case(out, case.id, source)
  if done is not None:
    return done
  native, masks = case.read()
  if native.ndim != len(spacing):
    raise InputError(case.image, f"has {native.ndim} axes, the target spacing {len(spacing)}",
                     "give one spacing per axis")
  image = resample.resample_image(to_canonical(native), spacing)
  masks = [resample.resample_labels(to_canonical(Volume(mask, native.affine)), spacing).array
           for mask in masks]
  array = image.array if image.array.ndim > image.ndim else image.array[..., None]
  channels = 3 if modality == "rgb" else 1
  if array.shape[-1] != channels:
    raise InputError(case.image, f"{array.shape[-1]} channels where {modality} has {channels}",
                     "convert the image")
  return store_lib.write_case(
      out, case.id, _compact(array, modality), np.stack(masks), dataset=case.dataset,
      split=case.split, annotated=case.annotation.classes, affine=image.affine, source=source)


def _compact(array: np.ndarray, modality: str) -> np.ndarray:
  """The smallest dtype that loses nothing worth having: whole HU, 8-bit colours."""
  if modality == "rgb":
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)
  if modality == "ct":
    return np.clip(np.rint(array), -32768, 32767).astype(np.int16)
  return array.astype(np.float32)
