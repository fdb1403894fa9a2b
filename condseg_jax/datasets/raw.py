"""What an importer finds in a folder: files, and what each of them says about which classes."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from condseg_jax.classes import Annotation
from condseg_jax.classes import normal_name
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import match_grid
from condseg_jax.geometry import Volume


class Alteration(Protocol):
  """A dataclass that changes masks of training cases: `Damage`, `Scribbles`."""

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str, *,
            in_place: bool = False) -> np.ndarray:
    """The changed three-valued mask of `name`, CASE/CLASS."""


@dataclasses.dataclass(frozen=True)
class RawLabel:
  """A label map, and what its values mean; only the classes of the annotation are annotated."""

  path: Path
  annotation: Annotation

  def read(self, image_path, image: Geometry) -> Volume:
    """The label map on the grid of its image.

    Raises:
      InputError: unreadable file, label of another grid, undeclared label value.
    """
    label = match_grid(image_path, image, self.path, files.read_label(self.path))
    self.annotation.check(label.array, self.path)
    return label


@dataclasses.dataclass(frozen=True)
class RawCase:
  """One image with its labels, as files.

  Attributes:
    id: unique in its folder.
    image: the file, or the folder of a DICOM series.
    labels: one label map, or several, e.g. one for each class.
    dataset: the group that it is sampled with.
    split: `train`, `val` or `test`.
    group: what it must not be parted from, e.g. the patient or the city; itself when empty.
    series: SeriesInstanceUID, where a DICOM folder holds several.
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
    """The image and its three-valued masks [K, *shape], both on the grid of the file.

    Raises:
      InputError: unreadable file, label of another grid, undeclared label value.
    """
    image = files.read_volume(self.image, self.series)
    masks = [label.annotation.mask(volume.array, name) for label in self.labels
             for volume in [label.read(self.image, image.geometry)]
             for name in label.annotation.classes]
    return image, np.stack(masks)

  def digest(self) -> str:
    """SHA-256 of all files and of how they are read."""
    paths = [*files.members(self.image, self.series),
             *(part for label in self.labels for part in files.members(label.path))]
    # Unsorted: the order of classes counts.
    meaning = json.dumps([label.annotation.to_json() for label in self.labels])
    parts = [*map(_file_digest, paths), self.id, self.dataset, self.split, self.series, meaning]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RawFolder:
  """A folder of raw cases in some known layout.

  Attributes:
    root: the folder.
    modality: `ct`, `mr` or `rgb`.
    cases: all labelled cases.
    no_mirror: class → axes along which it may not be mirrored.
    alterations: changes of the masks of training cases, in this order.
    faults: what had to be left out, such as an image without label; preparing raises the first.
    recipe: what was done to the cases since they were found, for the record.
  """

  root: Path
  modality: str
  cases: tuple[RawCase, ...]
  no_mirror: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  alterations: tuple[Alteration, ...] = ()
  faults: tuple[InputError, ...] = ()
  recipe: Mapping[str, object] = dataclasses.field(default_factory=dict)

  @property
  def classes(self) -> tuple[str, ...]:
    """All classes that some case annotates, in order of appearance."""
    return tuple(dict.fromkeys(name for case in self.cases for name in case.classes))

  def altered(self, alteration: Alteration) -> "RawFolder":
    """With one more change of the masks of its training cases."""
    alterations = (*self.alterations, alteration)
    told = [{"name": type(a).__name__, **dataclasses.asdict(a)} for a in alterations]
    return dataclasses.replace(self, alterations=alterations,
                               recipe={**self.recipe, "alterations": told})


def ready(folder: RawFolder) -> RawFolder:
  """A folder as it can be prepared: cases of a dataset annotate the same classes.

  Those that annotate others become datasets of their own, numbered in order of appearance.

  Raises:
    InputError: the first of its faults.
  """
  for fault in folder.faults:
    raise fault
  kinds: dict[str, list[tuple[str, ...]]] = {}
  for case in folder.cases:
    if case.classes not in kinds.setdefault(case.dataset, []):
      kinds[case.dataset].append(case.classes)
  cases = (dataclasses.replace(c, dataset=f"{c.dataset} {kinds[c.dataset].index(c.classes) + 1}")
           if len(kinds[c.dataset]) > 1 else c for c in folder.cases)
  return dataclasses.replace(folder, cases=tuple(cases))


def keep_classes(folder: RawFolder, names: Sequence[str]) -> RawFolder:
  """A dataset with only some of its classes annotated.

  The voxels of a class that is not kept are negatives of the kept ones and say nothing of their
  own; cases that annotate none of the kept classes are left out.

  Args:
    names: classes in the order wanted, whatever their case; all of them when empty.

  Raises:
    InputError: a class that the dataset does not annotate.
  """
  names = tuple(dict.fromkeys(normal_name(name) for name in names))
  for name in names:
    if name not in folder.classes:
      raise InputError(f"class {name!r}", "is not among the dataset's labels",
                       f"labels: {', '.join(folder.classes)}", usage=True)
  if not names:
    return folder
  cases = [annotate_only(case, names) for case in folder.cases]
  cases = tuple(case for case in cases if case.labels)
  return dataclasses.replace(folder, cases=cases, recipe={**folder.recipe, "keep": list(names)})


def annotate_only(case: RawCase, names: Sequence[str]) -> RawCase:
  """A case with only those of its classes annotated that are among `names`."""
  labels = (RawLabel(label.path, label.annotation.keep(names)) for label in case.labels)
  return dataclasses.replace(case, labels=tuple(x for x in labels if x.annotation.classes))


def no_label(image: Path, expected) -> InputError:
  """The fault that an image has no label where one is expected."""
  return InputError(image, "has no label", f"expected {expected}", kind="no_label")


def nowhere(subject, name: str, cure: str) -> InputError:
  """The fault that a dataset names a class and annotates it in no case."""
  return InputError(subject, f"no case annotates the class {name!r}", cure, kind="class_nowhere")


def read_json(path: Path) -> dict:
  """A JSON file that holds an object, or an error that names it."""
  try:
    tree = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise InputError(path, f"cannot be read ({error.strerror})", "check the path") from error
  except ValueError as error:
    raise InputError(path, f"is not valid JSON ({error})", "correct the file") from error
  if not isinstance(tree, dict):
    raise InputError(path, "holds no JSON object", "it should begin with {")
  return tree


def _file_digest(path: Path) -> str:
  try:
    with open(path, "rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()
  except OSError as error:
    raise InputError(path, f"cannot be read ({error.strerror})", "check the dataset") from error
