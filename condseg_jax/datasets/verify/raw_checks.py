"""Reads everything under a folder and collects all that is wrong with it."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import hashlib
import os
from pathlib import Path

from etils import epath
import numpy as np
import tqdm

from condseg_jax.classes import POSITIVE
from condseg_jax.datasets import discover
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.verify.findings import class_findings
from condseg_jax.datasets.verify.findings import ERROR
from condseg_jax.datasets.verify.findings import Finding
from condseg_jax.datasets.verify.findings import leak_findings
from condseg_jax.datasets.verify.findings import Measured
from condseg_jax.datasets.verify.findings import outlier_findings
from condseg_jax.datasets.verify.findings import Seen
from condseg_jax.datasets.verify.findings import training_findings
from condseg_jax.datasets.verify.findings import WARNING
from condseg_jax.datasets.verify.store_checks import check_store
from condseg_jax.datasets.verify.store_checks import is_store
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.voxels import to_labels
from condseg_jax.geometry import corner_distance
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import QUIET_CORNER_MM
from condseg_jax.geometry import reorient_to
from condseg_jax.geometry import shear
from condseg_jax.geometry import tolerance
from condseg_jax.geometry import Volume

WORKERS = 4  # cases at a time; each is in memory with its labels
MAX_SHEAR_DEGREES = 0.1


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is remembered of a case once it was read.

  Attributes:
    folder, case: where it comes from.
    digest: of its voxels; "" where they could not be read.
    spacing: along the axes of the file.
    positives: class → number of positive voxels, of the labels that could be read.
    intensity: mean of the image where some class is; NaN where none is.
  """

  folder: RawFolder
  case: RawCase
  digest: str = ""
  spacing: tuple[float, ...] = ()
  positives: dict[str, int] = dataclasses.field(default_factory=dict)
  intensity: float = float("nan")


def verify(root, read: Callable[[Path], RawFolder] | None = None, *,
           progress: bool = True) -> tuple[list[Finding], int]:
  """Checks raw datasets and prepared stores.

  Args:
    root: a store, a raw dataset, or a folder of these.
    read: importer for a layout that is not known by its looks.
    progress: show a progress bar.

  Returns:
    All findings, and how many cases were read.

  Raises:
    InputError: nothing there that could be checked.
  """
  paths, unknown = _datasets(epath.Path(root), read)
  findings, folders, seen = [_unknown(path) for path in unknown], [], []
  for path in paths:
    if is_store(path):
      found, cases = check_store(path, progress=progress)
      findings, seen = findings + found, seen + cases
      continue
    try:
      folders.append(read(Path(path)) if read else discover.at(path))
      findings += map(Finding.of, folders[-1].faults)
    except InputError as error:
      findings.append(Finding.of(error))
  jobs = [(folder, case) for folder in folders for case in folder.cases]
  count = len(seen) + len(jobs)
  facts = []
  with concurrent.futures.ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
    results = pool.map(lambda job: _examined(*job), jobs)
    for fact, found in tqdm.tqdm(results, total=len(jobs), desc="verifying",
                                 disable=not progress or not jobs):
      facts.append(fact)
      findings += found
  for folder in folders:
    mine = [fact for fact in facts if fact.folder is folder]
    shown = {name: {fact.case.id: fact.positives[name] for fact in mine if name in fact.positives}
             for name in folder.classes}
    findings += [*class_findings(folder.root, shown), *_outliers(mine),
                 *training_findings(folder.root, [(c.split, c.classes) for c in folder.cases])]
  seen += [Seen(fact.digest, fact.case.split, str(fact.case.image))
           for fact in facts if fact.digest]
  return findings + leak_findings(seen), count


def _datasets(root: epath.Path, read) -> tuple[list[epath.Path], list[epath.Path]]:
  """The folders to check, the path itself or those in it, and others in it of no known layout."""
  if not root.exists():
    raise InputError(root, "does not exist", "check the path")

  def usable(path):
    try:
      return is_store(path) or discover.at(path) is not None
    except InputError:
      return True
  if read or usable(root):
    return [root], []
  inside = sorted(root.iterdir()) if root.is_dir() else []
  inside = [p for p in inside if p.is_dir() and not p.name.startswith(".")]
  found = [p for p in inside if usable(p)]
  if not found:
    raise InputError(root, "holds neither a prepared store nor a raw dataset",
                     "name the dataset, and its layout with --format")
  return found, [p for p in inside if p not in found]


def _unknown(path: epath.Path) -> Finding:
  return Finding(WARNING, "unknown_layout", str(path), "is neither a prepared store nor a raw "
                 "dataset known by its looks", "prepare it; training on all passes it over")


def _examined(folder: RawFolder, case: RawCase) -> tuple[Facts, list[Finding]]:
  findings, positives, image, union = [], {}, None, False
  try:
    image = files.read_volume(case.image, case.series)
  except InputError as error:
    findings.append(Finding.of(error))
  except OSError as error:
    findings.append(Finding.of(_unreadable(case.image, error)))
  for label in case.labels:
    found, volume = _label(case, image, label)
    findings += found
    if volume is not None:
      for name in label.annotation.classes:
        mask = label.annotation.mask(volume.array, name) == POSITIVE
        positives[name] = int(np.count_nonzero(mask))
        union |= mask if image is not None else False
  if image is None:
    return Facts(folder, case, positives=positives), findings
  angle = shear(image.affine)
  if angle > MAX_SHEAR_DEGREES:
    findings.append(Finding(WARNING, "direction", str(case.image),
                            f"its axes miss the right angle by {angle:.2g} degrees",
                            "resample it onto perpendicular axes, e.g. with dcm2niix"))
  array = image.array if image.array.ndim == image.ndim else image.array.mean(-1)
  intensity = float(array[union].mean(dtype=np.float64)) if np.any(union) else float("nan")
  if array.min() == array.max():
    findings.append(Finding(WARNING, "constant_image", str(case.image),
                            f"every voxel is {array.flat[0]:g}", "convert the original again"))
  digest = hashlib.sha256(str((image.array.dtype, image.array.shape)).encode())
  digest.update(np.ascontiguousarray(image.array.T))
  return Facts(folder, case, digest.hexdigest(), image.spacing, positives, intensity), findings


def _label(case: RawCase, image: Volume | None,
           label: RawLabel) -> tuple[list[Finding], Volume | None]:
  """What is wrong with a label map, and the map if it can be used.

  Args:
    image: None where it cannot be read; the label is looked at nevertheless.
  """
  findings = []
  try:
    stored = files.read_volume(label.path)
    volume = to_labels(label.path, stored)
    if stored.array.dtype.kind == "f":
      findings.append(Finding(WARNING, "float_label", str(label.path),
                              f"labels stored as {stored.array.dtype}", "store them as uint8"))
    if image is not None:
      volume = reorient_to(image.geometry, volume)
      distance = _distance(image, volume)
      if QUIET_CORNER_MM < distance <= tolerance(image.geometry):
        findings.append(Finding(WARNING, "affine", str(label.path),
                                f"lies {distance:.2g} mm away from the image",
                                "copy the affine of the image, if it is the right one"))
        volume = Volume(volume.array, image.affine)
      volume = match_grid(case.image, image.geometry, label.path, volume)
    label.annotation.check(volume.array, label.path)
  except InputError as error:
    return [*findings, _told(error)], None
  except OSError as error:
    return [*findings, Finding.of(_unreadable(label.path, error))], None
  return findings, volume


def _unreadable(path, error: OSError) -> InputError:
  return InputError(error.filename or path, f"cannot be read: {error.strerror or error}",
                    "check its permissions, or copy it again")


def _distance(image: Volume, label: Volume) -> float:
  same = image.geometry.shape == label.geometry.shape
  return corner_distance(image.geometry, label.geometry) if same else float("inf")


def _told(error: InputError) -> Finding:
  if error.kind == "mask_0_255":
    return Finding(ERROR, error.kind, error.subject, "is a mask of 0 and 255, but 255 is no "
                   "declared label value", "declare 255 as the class's value, or store 0 and 1")
  return Finding.of(error)


def _outliers(facts: Sequence[Facts]) -> Iterable[Finding]:
  read = [fact for fact in facts if fact.spacing]
  axes = collections.Counter(len(fact.spacing) for fact in read).most_common(1)
  for fact in read:
    if len(fact.spacing) != axes[0][0]:
      yield Finding(ERROR, f"{len(fact.spacing)}-D", str(fact.case.image),
                    f"has {len(fact.spacing)} axes, the others {axes[0][0]}", "leave it out")
  # Only CT has a unit.
  yield from outlier_findings([
      Measured(str(fact.case.image), fact.spacing,
               fact.intensity if fact.folder.modality == "ct" else float("nan"))
      for fact in read if len(fact.spacing) == axes[0][0]])
