"""Checks raw datasets and prepared stores by reading all their files."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import hashlib
import os
from pathlib import Path

from etils import epath
import numpy as np
import tqdm

from condseg_jax.classes import POSITIVE
from condseg_jax.cluster.tasks import Cluster
from condseg_jax.datasets import discover
from condseg_jax.datasets.raw import leaks
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.verify.findings import CaseStatistics
from condseg_jax.datasets.verify.findings import class_findings
from condseg_jax.datasets.verify.findings import ERROR
from condseg_jax.datasets.verify.findings import Finding
from condseg_jax.datasets.verify.findings import ImageRecord
from condseg_jax.datasets.verify.findings import leak_findings
from condseg_jax.datasets.verify.findings import outlier_findings
from condseg_jax.datasets.verify.findings import training_findings
from condseg_jax.datasets.verify.findings import WARNING
from condseg_jax.datasets.verify.map_cases import map_cases
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

WORKERS = 4  # maximal number of cases, with their labels, in memory at a time
MAX_SHEAR_DEGREES = 0.1


@dataclasses.dataclass(frozen=True)
class Facts:
  """Properties of a case that was read.

  Attributes:
    case: the case.
    digest: digest of its voxels; "" if the image is unreadable.
    spacing: along the axes of the file.
    positives: class → number of positive voxels, for readable labels.
    intensity: mean intensity of positive voxels of any class; NaN if there is none.
  """

  case: RawCase
  digest: str = ""
  spacing: tuple[float, ...] = ()
  positives: dict[str, int] = dataclasses.field(default_factory=dict)
  intensity: float = float("nan")


def verify(root: str | os.PathLike, read: Callable[[Path], RawFolder] | None = None, *,
           progress: bool = True, cluster: Cluster | None = None) -> tuple[list[Finding], int]:
  """Checks raw datasets and prepared stores.

  Args:
    root: a store, a raw dataset, or a folder that contains some of these.
    read: importer, for a layout that cannot be detected.
    progress: show a progress bar.
    cluster: whose workers read the cases; threads of this process by default.

  Returns:
    All findings, and the number of cases that were read.

  Raises:
    InputError: no dataset at this path.
  """
  paths, unknown = _datasets(epath.Path(root), read)
  findings = [_unknown_layout(path) for path in unknown]
  folders: list[RawFolder] = []
  images: list[ImageRecord] = []
  for path in paths:
    if is_store(path):
      store_findings, store_images = check_store(path, progress=progress,
                                                 cluster=cluster)
      findings, images = findings + store_findings, images + store_images
      continue
    try:
      folders.append(read(Path(path)) if read else discover.open_layout(path))
    except InputError as error:
      findings.append(Finding.of(error))
  count = len(images) + sum(len(folder.cases) for folder in folders)
  raw_findings, raw_images = check_folders(folders, progress=progress, cluster=cluster)
  return [*findings, *raw_findings, *leak_findings([*images, *raw_images])], count


def check_folders(folders: Sequence[RawFolder], *, progress: bool = True,
                  cluster: Cluster | None = None) -> tuple[list[Finding], list[ImageRecord]]:
  """Checks raw datasets that were read by an importer.

  Returns:
    The findings except for images in two splits, see `leak_findings`, and the images.
  """
  cases = [case for folder in folders for case in folder.cases]
  findings = [Finding.of(error) for folder in folders
              for error in (*folder.faults, *leaks(folder))]
  facts = []
  results = map_cases(check_case, [(case,) for case in cases], [str(case.image) for case in cases],
                      WORKERS, cluster)
  for outcome in tqdm.tqdm(results, total=len(cases), desc="verifying",
                           disable=not progress or not cases):
    if isinstance(outcome.error, InputError):  # it ends the process that reads it
      outcome = outcome._replace(value=(Facts(cases[outcome.number]), [Finding.of(outcome.error)]))
    elif outcome.error is not None:
      raise outcome.error
    case_facts, case_findings = outcome.value
    facts.append(case_facts)
    findings += case_findings
  images = [ImageRecord(fact.digest, fact.case.split, str(fact.case.image))
            for fact in facts if fact.digest]
  for folder in folders:
    own, facts = facts[:len(folder.cases)], facts[len(folder.cases):]
    positives = {name: {fact.case.id: fact.positives[name] for fact in own
                        if name in fact.positives} for name in folder.classes}
    findings += [*class_findings(folder.root, positives), *_outliers(own, folder.modality),
                 *training_findings(folder.root, [(c.split, c.classes) for c in folder.cases])]
  return findings, images


def _datasets(root: epath.Path, read: Callable[[Path], RawFolder] | None
              ) -> tuple[list[epath.Path], list[epath.Path]]:
  """Returns the datasets to check (`root` or its subfolders), and subfolders of unknown layout."""
  if not root.exists():
    raise InputError(root, "does not exist", "check the path")

  def usable(path: epath.Path) -> bool:
    try:
      return is_store(path) or discover.open_layout(path) is not None
    except InputError:
      return True
  if read or usable(root):
    return [root], []
  folders = sorted(root.iterdir()) if root.is_dir() else []
  folders = [p for p in folders if p.is_dir() and not p.name.startswith(".")]
  datasets = [p for p in folders if usable(p)]
  if not datasets:
    raise InputError(root, "contains neither a prepared store nor a raw dataset",
                     "choose a dataset; give `read` if its layout cannot be detected")
  return datasets, [p for p in folders if p not in datasets]


def _unknown_layout(path: epath.Path) -> Finding:
  return Finding(WARNING, "unknown_layout", str(path), "is neither a prepared store nor a raw "
                 "dataset of a detectable layout",
                 "prepare it; training on the parent folder skips it")


def check_case(case: RawCase) -> tuple[Facts, list[Finding]]:
  """Reads a case and checks it by itself."""
  findings, positives, image, union = [], {}, None, False
  try:
    image = files.read_volume(case.image, case.series)
  except InputError as error:
    findings.append(Finding.of(error))
  except OSError as error:
    findings.append(Finding.of(_unreadable(case.image, error)))
  for label in case.labels:
    label_findings, volume = _check_label(case, image, label)
    findings += label_findings
    if volume is not None:
      for name in label.annotation.classes:
        mask = label.annotation.mask(volume.array, name) == POSITIVE
        positives[name] = int(np.count_nonzero(mask))
        union |= mask if image is not None else False
  if image is None:
    return Facts(case, positives=positives), findings
  angle = shear(image.affine)
  if angle > MAX_SHEAR_DEGREES:
    findings.append(Finding(WARNING, "direction", str(case.image),
                            f"its axes deviate from a right angle by {angle:.2g} degrees",
                            "resample it to perpendicular axes, e.g. with dcm2niix"))
  array = image.array if image.array.ndim == image.ndim else image.array.mean(-1)
  intensity = float(array[union].mean(dtype=np.float64)) if np.any(union) else float("nan")
  if array.min() == array.max():
    findings.append(Finding(WARNING, "constant_image", str(case.image),
                            f"every voxel has the value {array.flat[0]:g}",
                            "convert the original again"))
  digest = hashlib.sha256(str((image.array.dtype, image.array.shape)).encode())
  digest.update(np.ascontiguousarray(image.array.T))
  return Facts(case, digest.hexdigest(), image.spacing, positives, intensity), findings


def _check_label(case: RawCase, image: Volume | None,
                 label: RawLabel) -> tuple[list[Finding], Volume | None]:
  """Checks a label map.

  Args:
    case: its case.
    image: the image of the case; None if it is unreadable.
    label: the label.

  Returns:
    The findings, and the label map, None if it is unusable.
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
                                f"is {distance:.2g} mm away from the image",
                                "copy the affine of the image, if that is correct"))
        volume = Volume(volume.array, image.affine)
      volume = match_grid(case.image, image.geometry, label.path, volume)
    label.annotation.check(volume.array, label.path)
  except InputError as error:
    return [*findings, _label_error(error)], None
  except OSError as error:
    return [*findings, Finding.of(_unreadable(label.path, error))], None
  return findings, volume


def _unreadable(path: Path, error: OSError) -> InputError:
  return InputError(error.filename or path, f"cannot be read: {error.strerror or error}",
                    "check its permissions, or copy it again")


def _distance(image: Volume, label: Volume) -> float:
  same = image.geometry.shape == label.geometry.shape
  return corner_distance(image.geometry, label.geometry) if same else float("inf")


def _label_error(error: InputError) -> Finding:
  if error.kind == "mask_0_255":
    return Finding(ERROR, error.kind, error.subject, "is a mask of 0 and 255, but 255 is an "
                   "undeclared label value", "declare 255 as the class's value, or store 0 and 1")
  return Finding.of(error)


def _outliers(facts: Sequence[Facts], modality: str) -> Iterable[Finding]:
  read = [fact for fact in facts if fact.spacing]
  axes = collections.Counter(len(fact.spacing) for fact in read).most_common(1)
  for fact in read:
    if len(fact.spacing) != axes[0][0]:
      yield Finding(ERROR, f"{len(fact.spacing)}-D", str(fact.case.image),
                    f"has {len(fact.spacing)} axes, but the others have {axes[0][0]}",
                    "remove the case")
  # Only CT intensities have a unit.
  yield from outlier_findings([
      CaseStatistics(str(fact.case.image), fact.spacing,
                     fact.intensity if modality == "ct" else float("nan"))
      for fact in read if len(fact.spacing) == axes[0][0]])
