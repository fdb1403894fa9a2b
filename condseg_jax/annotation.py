"""The meaning of a dataset's label values: classes it annotates, and voxels it leaves open."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os

import numpy as np

from condseg_jax.classes import checked_name
from condseg_jax.classes import normal_name
from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Annotation:
  """The meaning of the label values of one dataset.

  Attributes:
    values: annotated class → its label values. A class that is not a key is not annotated in this
      dataset, even if it is visible in the images.
    void: label values of voxels that are unlabelled for every class.
    void_for: class → label values of voxels that are unlabelled for this class alone.
    known: all values that may occur in the dataset; any other value is an error.
  """

  values: Mapping[str, tuple[int, ...]]
  void: tuple[int, ...] = ()
  known: tuple[int, ...] = ()
  void_for: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

  @classmethod
  def create(cls, labels: Mapping[int, str], *, keep: Sequence[str] = (),
             void: Sequence[int] = (), subject: object = "labels") -> "Annotation":
    """Creates an annotation from a table of label values, as in an MSD `dataset.json`.

    Args:
      labels: value → class name; the value 0 is background, and its name is ignored.
      keep: classes to keep as annotated (case is ignored); all of them if empty. Voxels of the
        other classes are negatives of the kept ones; the other classes themselves are unlabelled.
      void: values of voxels that are unlabelled for every class.
      subject: file of the table, for error messages.

    Raises:
      InputError: an invalid class name, or a class in `keep` that has no label value.
    """
    values: dict[str, tuple[int, ...]] = {}
    for value, name in sorted(labels.items()):
      if value != 0 and value not in void:
        name = checked_name(name, subject)
        values[name] = (*values.get(name, ()), value)
    for name in keep:
      if normal_name(name) not in values:
        raise InputError(f"class {name!r}", "not a label of the dataset",
                         f"labels: {', '.join(values)}", usage=True)
    kept = [normal_name(name) for name in keep] or list(values)
    known = sorted({0, *labels, *void})
    return cls({name: values[name] for name in kept}, tuple(void), tuple(known))

  @property
  def classes(self) -> tuple[str, ...]:
    """The annotated classes."""
    return tuple(self.values)

  def keep(self, names: Sequence[str]) -> "Annotation":
    """Returns the annotation restricted to `names`; names that it does not contain are ignored."""
    return dataclasses.replace(self, values={n: self.values[n] for n in names if n in self.values})

  def check(self, label: np.ndarray, subject: str | os.PathLike = "label") -> None:
    """Raises InputError, with `subject` as its subject, if a label map has an undeclared value."""
    present: set[int] = set()
    for plane in label if label.ndim > 2 else [label]:  # faster than sorting the whole array
      present.update(np.unique(plane).tolist())
    unknown = sorted(present - set(self.known))
    if unknown:
      declared = ", ".join(map(str, self.known))
      raise InputError(subject, f"unknown label value {unknown[0]}",
                       f"declared values: {declared}; add it to the dataset's labels",
                       kind="mask_0_255" if present <= {0, 255} else "unknown_value")

  def mask(self, label: np.ndarray, name: str) -> np.ndarray:
    """Converts a label map, or a slice of one, to the three-valued uint8 mask of one class."""
    mask = np.isin(label, self.values[name]).astype(np.uint8)
    void = (*self.void, *self.void_for.get(name, ()))
    if void:
      mask[np.isin(label, void)] = UNLABELLED
    return mask

  def masks(self, label: np.ndarray, subject: str | os.PathLike = "label") -> np.ndarray:
    """Converts a label map to one three-valued mask per annotated class.

    Args:
      label: integer label map of any shape.
      subject: file name for the error message.

    Returns:
      uint8 [K, *label.shape], one mask per class in the order of `classes`.

    Raises:
      InputError: the map contains an undeclared value.
    """
    self.check(label, subject)
    masks = np.empty((len(self.values), *label.shape), np.uint8)
    for mask, name in zip(masks, self.classes, strict=True):
      mask[...] = self.mask(label, name)
    return masks

  def to_json(self) -> dict:
    """Returns the annotation as JSON-compatible dicts and lists."""
    tree = {"values": {k: list(v) for k, v in self.values.items()}, "void": list(self.void),
            "known": list(self.known)}
    # The digest of a case depends on this: without such values it stays what it was.
    return tree | ({"void_for": {k: list(v) for k, v in self.void_for.items()}}
                   if self.void_for else {})
