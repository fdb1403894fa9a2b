"""What an importer finds in a folder: files, and what each of them says about which classes."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from condseg_jax.classes import Annotation
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.geometry import check_same_grid


@dataclasses.dataclass(frozen=True)
class RawCase:
  """One image with its label, as files.

  Attributes:
    id: unique in its folder.
    image, label: the files.
    dataset: the group that it is sampled with.
    split: `train`, `val` or `test`.
    annotation: what the label's values mean; only its classes are annotated.
  """

  id: str
  image: Path
  label: Path
  dataset: str
  split: str
  annotation: Annotation

  def read(self) -> tuple[Volume, np.ndarray]:
    """The image and its three-valued masks [K, *shape], both on the grid of the file.

    Raises:
      InputError: unreadable file, label of another grid, undeclared label value.
    """
    image = files.read_image(self.image)
    label = check_same_grid(self.image, image, self.label, files.read_label(self.label))
    return image, self.annotation.masks(label.array, self.label)

  def digest(self) -> str:
    """SHA-256 of both files and of how they are read."""
    parts = [_file_digest(self.image), _file_digest(self.label), self.id, self.dataset, self.split,
             json.dumps(self.annotation.to_json())]  # unsorted: the order of classes counts
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RawFolder:
  """A folder of raw cases in some known layout.

  Attributes:
    root: the folder.
    modality: `ct`, `mr` or `rgb`.
    cases: all labelled cases.
    no_mirror: class → axes along which it may not be mirrored.
  """

  root: Path
  modality: str
  cases: tuple[RawCase, ...]
  no_mirror: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  @property
  def classes(self) -> tuple[str, ...]:
    """All classes that some case annotates, in order of appearance."""
    return tuple(dict.fromkeys(name for case in self.cases for name in case.annotation.classes))


def read_json(path: Path) -> dict:
  """A JSON file that holds an object, or an error that names it."""
  try:
    tree = json.loads(path.read_text())
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
