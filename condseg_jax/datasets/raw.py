"""Raw datasets: image and label files, and the classes that each label file annotates."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import ClassVar
from typing import Protocol

import numpy as np

from condseg_jax.annotation import Annotation
from condseg_jax.classes import normal_name
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import Volume


class Alteration(Protocol):
  """A dataclass that changes the masks of training cases: `Corruption`, `Scribbles`.

  Attributes:
    record_name: its name in the provenance of a store and in the digest of a case.
  """

  record_name: ClassVar[str]

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str, *,
            in_place: bool = False) -> np.ndarray:
    """Returns the changed three-valued mask; `name` is CASE/CLASS."""


@dataclasses.dataclass(frozen=True)
class RawLabel:
  """A label file and the meaning of its values; only the classes of `annotation` are annotated."""

  path: Path
  annotation: Annotation

  def read(self, image_path: str | os.PathLike, image: Geometry) -> Volume:
    """Reads the label map on the grid of its image.

    Args:
      image_path: for error messages.
      image: grid of the image in file axis order.

    Raises:
      InputError: unreadable file, label on another grid, undeclared label value.
    """
    label = match_grid(image_path, image, self.path, files.read_label(self.path))
    self.annotation.check(label.array, self.path)
    return label


@dataclasses.dataclass(frozen=True)
class RawCase:
  """The files of one image and its labels.

  Attributes:
    id: unique in its folder.
    image: the file, or the folder of a DICOM series.
    labels: one label map, or several, e.g. one for each class.
    dataset: the group from which it is sampled.
    split: `train`, `val` or `test`.
    group: cases of one group, e.g. a patient or a city, are kept in one fold; empty for a group of
      its own.
    series: SeriesInstanceUID, if a DICOM folder contains several series.
  """

  id: str
  image: Path
  labels: tuple[RawLabel, ...]
  dataset: str
  split: str
  group: str = ""
  series: str = ""

  @property
  def classes(self) -> tuple[str, ...]:
    """The classes annotated in this case."""
    return tuple(name for label in self.labels for name in label.annotation.classes)

  def read(self) -> tuple[Volume, np.ndarray]:
    """Reads the image and its three-valued masks [K, *shape], both on the grid of the file.

    Raises:
      InputError: unreadable file, label on another grid, undeclared label value.
    """
    image = files.read_volume(self.image, self.series)
    masks = [label.annotation.mask(volume.array, name) for label in self.labels
             for volume in [label.read(self.image, image.geometry)]
             for name in label.annotation.classes]
    return image, np.stack(masks) if masks else np.empty((0, *image.geometry.shape), np.uint8)

  def digest(self) -> str:
    """Returns the SHA-256 of all files and of the metadata that determine how they are read."""
    paths = [*files.members(self.image, self.series),
             *(path for label in self.labels for path in files.members(label.path))]
    # Not sorted: the order of the classes matters.
    meaning = json.dumps([label.annotation.to_json() for label in self.labels])
    entries = [*map(_file_digest, paths), self.id, self.dataset, self.split, self.series, meaning]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RawFolder:
  """A raw dataset, as an importer reads it.

  Attributes:
    root: the folder.
    modality: `ct`, `mr` or `rgb`.
    cases: all labelled cases.
    no_mirror: class → axes along which it must not be mirrored.
    alterations: changes of the masks of training cases, applied in this order.
    faults: defects of cases that were left out, such as an image without a label; `validated`
      raises the first.
    provenance: how the dataset was modified since it was read, for the manifest of the store.
  """

  root: Path
  modality: str
  cases: tuple[RawCase, ...]
  no_mirror: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  alterations: tuple[Alteration, ...] = ()
  faults: tuple[InputError, ...] = ()
  provenance: Mapping[str, object] = dataclasses.field(default_factory=dict)

  @property
  def classes(self) -> tuple[str, ...]:
    """All classes annotated in at least one case, in order of appearance."""
    return tuple(dict.fromkeys(name for case in self.cases for name in case.classes))

  def altered(self, alteration: Alteration) -> "RawFolder":
    """Returns the dataset with one more change of the masks of its training cases."""
    alterations = (*self.alterations, alteration)
    records = [{"name": a.record_name, **dataclasses.asdict(a)} for a in alterations]
    return dataclasses.replace(self, alterations=alterations,
                               provenance={**self.provenance, "alterations": records})


def validated(folder: RawFolder) -> RawFolder:
  """Returns a dataset in which all cases of a dataset name annotate the same classes.

  Cases with different annotated classes become datasets of their own, numbered in order of
  appearance.

  Raises:
    InputError: the first fault of the folder, or a group in several splits.
  """
  for fault in (*folder.faults, *leaks(folder)):
    raise fault
  variants: dict[str, list[tuple[str, ...]]] = {}
  for case in folder.cases:
    if case.classes not in variants.setdefault(case.dataset, []):
      variants[case.dataset].append(case.classes)

  def dataset_of(case: RawCase) -> str:
    classes = variants[case.dataset]
    number = classes.index(case.classes) + 1
    return f"{case.dataset} {number}" if len(classes) > 1 else case.dataset

  cases = (dataclasses.replace(case, dataset=dataset_of(case)) for case in folder.cases)
  return dataclasses.replace(folder, cases=tuple(cases))


def leaks(folder: RawFolder) -> list[InputError]:
  """Returns an error for each group, e.g. a patient, that is in several splits.

  Scores on such splits are too high, since images of one patient resemble each other.
  """
  first: dict[str, RawCase] = {}
  errors: dict[str, InputError] = {}
  for case in folder.cases:
    other = first.setdefault(case.group, case)
    if case.group and case.split != other.split:
      errors.setdefault(case.group, InputError(
          case.image, f"is in {case.split}, but {other.id} of the same patient ({case.group}) in "
          f"{other.split}", 'assign both to one split, or declare "patient", see docs/data.md',
          kind="leak"))
  return list(errors.values())


def keep_classes(folder: RawFolder, names: Sequence[str]) -> RawFolder:
  """Restricts the annotated classes of a dataset.

  Voxels of the other classes are negatives of the kept ones; the other classes themselves become
  unlabelled. Cases that annotate none of the kept classes are dropped.

  Args:
    folder: the dataset.
    names: classes to keep, in this order; case is ignored; all of them if empty.

  Raises:
    InputError: a class that the dataset does not annotate.
  """
  names = tuple(dict.fromkeys(normal_name(name) for name in names))
  for name in names:
    if name not in folder.classes:
      raise InputError(f"class {name!r}", "not a label of the dataset",
                       f"labels: {', '.join(folder.classes)}", usage=True)
  if not names:
    return folder
  kept = [annotate_only(case, names) for case in folder.cases]
  cases = tuple(case for case in kept if case.labels)
  return dataclasses.replace(folder, cases=cases,
                             provenance={**folder.provenance, "keep": list(names)})


def annotate_only(case: RawCase, names: Sequence[str]) -> RawCase:
  """Returns a case that annotates only those of its classes that are in `names`."""
  labels = (RawLabel(label.path, label.annotation.keep(names)) for label in case.labels)
  return dataclasses.replace(case, labels=tuple(x for x in labels if x.annotation.classes))


def label_missing_error(image: Path, expected: object) -> InputError:
  """Returns the error for an image without a label; `expected` is the path of the label."""
  return InputError(image, "has no label", f"expected {expected}", kind="no_label")


def class_missing_error(subject: object, name: str, cure: str) -> InputError:
  """Returns the error for a declared class that no case annotates."""
  return InputError(subject, f"no case annotates the class {name!r}", cure, kind="class_nowhere")


def read_json(path: Path) -> dict:
  """Reads a JSON file that contains an object.

  Raises:
    InputError: unreadable file, invalid JSON, another JSON value, a name that occurs twice.
  """
  try:
    tree = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
  except OSError as error:
    raise InputError(path, f"cannot be read ({error.strerror})", "check the path") from error
  except ValueError as error:
    raise InputError(path, f"is not valid JSON ({error})", "correct the file") from error
  except RecursionError as error:
    raise InputError(path, "is not valid JSON (nested too deeply)", "correct the file") from error
  if not isinstance(tree, dict):
    raise InputError(path, "is not a JSON object", "it should start with {")
  return tree


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
  """Returns the dict of a JSON object; of a repeated name, `json` would keep the last value."""
  names = [name for name, _ in pairs]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"{name!r} occurs twice")
  return dict(pairs)


def _file_digest(path: Path) -> str:
  try:
    with open(path, "rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()
  except OSError as error:
    raise InputError(path, f"cannot be read ({error.strerror})", "check the dataset") from error
