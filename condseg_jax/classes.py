"""Which classes exist, and what each dataset says about them.

*Unlabelled is not absent.* A dataset that annotates the liver says nothing about the pancreas. That
distinction is declared here and everything else (masks, β, losses, scores) derives from it:

* a mask has three values, `NEGATIVE`, `POSITIVE` and `UNLABELLED`, wherever it is found;
* an `Annotation` says which of a dataset's label values mean which class, and so which classes the
  dataset annotates; `beta` turns that into the 0/1 weights β of the objective.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import colorsys
import dataclasses
import re

import numpy as np

from condseg_jax.errors import InputError

NEGATIVE, POSITIVE, UNLABELLED = 0, 1, 255

_WORD = 0xFFFFFFFF


def jenkins_hash(text: str) -> int:
  """Jenkins' one-at-a-time hash of the UTF-8 bytes of `text`, an unsigned 32-bit integer.

  Source: B. Jenkins, "A hash function for hash table lookup", Dr. Dobb's Journal, 1997.
  """
  h = 0
  for byte in text.encode("utf-8"):
    h = (h + byte) & _WORD
    h = (h + (h << 10)) & _WORD
    h ^= h >> 6
  h = (h + (h << 3)) & _WORD
  h ^= h >> 11
  return (h + (h << 15)) & _WORD


def hash_code(name: str) -> float:
  """The hash of a class name mapped linearly to [-1, 1]."""
  return 2.0 * jenkins_hash(name) / _WORD - 1.0


def distinct_codes(names: Sequence[str], capacity: int) -> tuple[float, ...]:
  """One code in [-1, 1] per name, no two nearer than 1 / (2 · capacity).

  A name whose code comes too near to an earlier one is hashed again as `name#1`, `name#2`, … Since
  the n codes taken block at most n / capacity of a range of 2, a free one is found while there are
  no more than `capacity` names.
  """
  codes = []
  for name in names:
    code, attempt = hash_code(name), 0
    while any(abs(code - other) < 1 / (2 * capacity) for other in codes):
      attempt += 1
      code = hash_code(f"{name}#{attempt}")
    codes.append(code)
  return tuple(codes)


@dataclasses.dataclass(frozen=True)
class SegClass:
  """One class that the network can be asked for.

  Attributes:
    name: lower-case, unique in its table.
    code: the value in [-1, 1] by which the hash condition names the class.
    color: display colour, 0–255.
    no_mirror: axes ("D", "H", "W") along which a mirrored image would show another class, such as
      "W" for the left kidney.
  """

  name: str
  code: float
  color: tuple[int, int, int]
  no_mirror: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ClassTable:
  """The classes in the order of their ids, and presets: named groups often read together.

  The id of a class is its position, from 0; in a label map it has the value id + 1, 0 being
  background. The table is written into stores and checkpoints and read back from there: codes are
  given once, in `create`, and never computed again.
  """

  classes: tuple[SegClass, ...]
  presets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  capacity: int = 64

  @classmethod
  def create(cls, names: Sequence[str], *, presets: Mapping[str, Sequence[str]] | None = None,
             colors: Mapping[str, Sequence[int]] | None = None,
             no_mirror: Mapping[str, Sequence[str]] | None = None,
             capacity: int = 64) -> "ClassTable":
    """A new table.

    Args:
      names: class names in the order of their ids; case is ignored.
      presets: name of a group → names of its classes.
      colors: name → (red, green, blue), 0–255; evenly spread hues where none is given.
      no_mirror: name → axes along which the class may not be mirrored.
      capacity: the number of classes that the code range is divided for.

    Raises:
      InputError: on doubled, empty or too many names, a preset that is empty or names an unknown
        class, or an axis that is none.
    """
    names = tuple(normal_name(name) for name in names)
    _check_names(names, capacity)
    colors = {normal_name(k): tuple(int(x) for x in v) for k, v in (colors or {}).items()}
    no_mirror = {normal_name(k): tuple(v) for k, v in (no_mirror or {}).items()}
    codes = distinct_codes(names, capacity)
    classes = tuple(
        SegClass(name, code, colors.get(name, hue(i)), no_mirror.get(name, ()))
        for i, (name, code) in enumerate(zip(names, codes, strict=True)))
    presets = {normal_name(key): tuple(normal_name(n) for n in group)
               for key, group in (presets or {}).items()}
    for key, group in presets.items():
      if not group:
        raise InputError(f"preset {key!r}", "names no class", f"classes: {_join(names)}",
                         usage=True)
      for name in sorted(set(group) - set(names)):
        raise InputError(f"preset {key!r}", f"unknown class {name!r}", f"classes: {_join(names)}",
                         usage=True)
    for name, axes in no_mirror.items():
      for axis in sorted(set(axes) - set("DHW")):
        raise InputError(f"no_mirror of {name!r}", f"unknown axis {axis!r}", "axes: D, H, W",
                         usage=True)
    return cls(classes, presets, capacity)

  def __len__(self) -> int:
    return len(self.classes)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(c.name for c in self.classes)

  @property
  def colors(self) -> tuple[tuple[int, int, int], ...]:
    return tuple(c.color for c in self.classes)

  @property
  def codes(self) -> np.ndarray:
    """The class codes in the order of the ids, float32 [K]."""
    return np.array([c.code for c in self.classes], np.float32)

  def index(self, name: str) -> int:
    """The id of a class, whatever the case of `name`."""
    try:
      return self.names.index(normal_name(name))
    except ValueError:
      raise InputError(f"class {name!r}", "is not known to this model or dataset",
                       f"known classes: {_join(self.names)}", usage=True) from None

  def select(self, names: Sequence[str] = (), preset: str = "") -> tuple[int, ...]:
    """Ids of the named classes, or of a preset, or of the whole table when neither is given."""
    if preset:
      group = self.presets.get(normal_name(preset))
      if group is None:
        known = _join(self.presets) or "none in this table"
        raise InputError(f"preset {preset!r}", "is not known", f"presets: {known}", usage=True)
      names = (*names, *group)
    return tuple(dict.fromkeys(self.index(n) for n in names)) or tuple(range(len(self)))

  def beta(self, annotated: Sequence[str]) -> np.ndarray:
    """β of Dmitriev & Kaufman's Eq. 4: 1 where a class is annotated, 0 elsewhere, float32 [K]."""
    beta_K = np.zeros(len(self), np.float32)
    beta_K[[self.index(name) for name in annotated]] = 1
    return beta_K

  def to_json(self) -> dict:
    return {"classes": [dataclasses.asdict(c) for c in self.classes],
            "presets": {k: list(v) for k, v in self.presets.items()}, "capacity": self.capacity}

  @classmethod
  def from_json(cls, tree: Mapping) -> "ClassTable":
    classes = tuple(SegClass(c["name"], float(c["code"]), tuple(c["color"]), tuple(c["no_mirror"]))
                    for c in tree["classes"])
    presets = {normal_name(k): tuple(v) for k, v in tree["presets"].items()}
    return cls(classes, presets, int(tree["capacity"]))


@dataclasses.dataclass(frozen=True)
class Annotation:
  """What the label values of one dataset mean.

  Attributes:
    values: annotated class → the label values that show it. A class that is not a key is not
      annotated here, whatever the images show.
    void: label values that say nothing about any class.
    known: all values the dataset may hold; any other is an error rather than a guess.
  """

  values: Mapping[str, tuple[int, ...]]
  void: tuple[int, ...] = ()
  known: tuple[int, ...] = ()

  @classmethod
  def create(cls, labels: Mapping[int, str], *, keep: Sequence[str] = (),
             void: Sequence[int] = ()) -> "Annotation":
    """From a table label value → name, such as the `labels` of an MSD `dataset.json`.

    Args:
      labels: value → class name; 0 is background and names nothing.
      keep: the classes to keep annotated, whatever their case; all of them when empty. The voxels
        of a class that is not kept are negatives of the kept ones and say nothing of their own.
      void: values that are unlabelled for every class.
    """
    values: dict[str, tuple[int, ...]] = {}
    for value, name in sorted(labels.items()):
      if value != 0 and value not in void:
        values[normal_name(name)] = (*values.get(normal_name(name), ()), value)
    for name in keep:
      if normal_name(name) not in values:
        raise InputError(f"class {name!r}", "is not among the dataset's labels",
                         f"labels: {_join(values)}", usage=True)
    kept = [normal_name(name) for name in keep] or list(values)
    known = sorted({0, *labels, *void})
    return cls({name: values[name] for name in kept}, tuple(void), tuple(known))

  @property
  def classes(self) -> tuple[str, ...]:
    """The annotated classes."""
    return tuple(self.values)

  def keep(self, names: Sequence[str]) -> "Annotation":
    """The same label values with only some classes annotated, those of `names` it has."""
    return dataclasses.replace(self, values={n: self.values[n] for n in names if n in self.values})

  def check(self, label: np.ndarray, subject="label") -> None:
    """Raises InputError, about `subject`, for a label map with an undeclared value."""
    present: set[int] = set()
    for part in label if label.ndim > 2 else [label]:  # a sort of the whole would take long
      present.update(np.unique(part).tolist())
    unknown = sorted(present - set(self.known))
    if unknown:
      raise InputError(subject, f"unknown label value {unknown[0]}",
                       f"declared values: {_join(self.known)}; name it in the dataset's labels",
                       kind="mask_0_255" if present <= {0, 255} else "unknown_value")

  def mask(self, label: np.ndarray, name: str) -> np.ndarray:
    """A label map, or a part of it, as the three-valued mask of one annotated class, uint8."""
    mask = np.isin(label, self.values[name]).astype(np.uint8)
    if self.void:
      mask[np.isin(label, self.void)] = UNLABELLED
    return mask

  def masks(self, label: np.ndarray, subject="label") -> np.ndarray:
    """A label map as one three-valued mask per annotated class.

    Args:
      label: integer label map of any shape.
      subject: the file, for the error message.

    Returns:
      uint8 [K, *label.shape], one mask per class in the order of `classes`.

    Raises:
      InputError: the map holds a value that the dataset does not declare.
    """
    self.check(label, subject)
    masks = np.empty((len(self.values), *label.shape), np.uint8)
    for mask, name in zip(masks, self.classes, strict=True):
      mask[...] = self.mask(label, name)
    return masks

  def to_json(self) -> dict:
    return {"values": {k: list(v) for k, v in self.values.items()}, "void": list(self.void),
            "known": list(self.known)}


def label_map(masks_KS: np.ndarray, ids: Sequence[int]) -> np.ndarray:
  """Three-valued masks as one label map for display: id + 1 where positive, else 0.

  A voxel is 255 where every mask is unlabelled; where classes overlap the later one is drawn.
  """
  out = np.zeros(masks_KS.shape[1:], np.uint16 if max(ids, default=0) >= 254 else np.uint8)
  if len(masks_KS):
    out[(masks_KS == UNLABELLED).all(0)] = UNLABELLED
  for mask, i in zip(masks_KS, ids, strict=True):
    out[mask == POSITIVE] = i + 1
  return out


def sides(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """Classes whose name says left or right: mirrored along W they would be the other one."""
  return {normal_name(name): ("W",) for name in names
          if {"left", "right"} & set(re.split(r"[^a-z]+", normal_name(name)))}


def normal_name(name: str) -> str:
  """The one spelling of a class name: lower case, no outer blanks."""
  return str(name).strip().lower()


def _check_names(names, capacity):
  doubled = sorted({n for n in names if names.count(n) > 1})
  if doubled or not names or "" in names:
    raise InputError("class table", f"doubled or empty names: {_join(doubled) or names}",
                     "give every class one name of its own")
  if len(names) > capacity:
    raise InputError("class table", f"{len(names)} classes, capacity {capacity}",
                     "raise the capacity before the first training")


def hue(i: int) -> tuple[int, int, int]:
  """Distinct colours for any number of classes: hues a golden angle apart."""
  rgb = colorsys.hsv_to_rgb((0.02 + i * 0.61803398875) % 1.0, 0.75 - 0.2 * (i % 2), 0.95)
  return tuple(round(255 * x) for x in rgb)


def _join(items) -> str:
  return ", ".join(str(i) for i in items)
