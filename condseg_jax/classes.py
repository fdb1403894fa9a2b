"""The classes of a model, and which of them each dataset annotates.

*Unlabelled is not absent.* A dataset that annotates the liver says nothing about the pancreas. This
distinction is defined here; masks, β, losses and scores derive from it:

* every mask has three values: `NEGATIVE`, `POSITIVE` and `UNLABELLED`;
* an `annotation.Annotation` maps the label values of a dataset to classes, and so defines which
  classes the dataset annotates; `ClassTable.beta` turns these into the 0/1 weights β of the
  objective.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import colorsys
import dataclasses
import re

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.errors import printable

MAX_NAME = 100  # characters of a class name, which becomes a part of file names
NEGATIVE, POSITIVE, UNLABELLED = 0, 1, 255

_WORD = 0xFFFFFFFF


def jenkins_hash(text: str) -> int:
  """Returns Jenkins' one-at-a-time hash of the UTF-8 bytes of `text`, an unsigned 32-bit integer.

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
  """Returns the hash of a class name, mapped linearly to [-1, 1]."""
  return 2.0 * jenkins_hash(name) / _WORD - 1.0


def distinct_codes(names: Sequence[str], capacity: int,
                   known: Mapping[str, float] | None = None) -> tuple[float, ...]:
  """Returns one code in [-1, 1] per name, no two closer than 1 / (2 · capacity).

  A name whose code is too close to an earlier one is hashed again as `name#1`, `name#2`, … The n
  codes in use block at most n / capacity of the range, which has length 2, so that a free code
  exists for up to `capacity` names. A name in `known` keeps the code that it has there.
  """
  codes = {name: code for name, code in (known or {}).items() if name in names}
  for name in names:
    if name in codes:
      continue
    code, attempt = hash_code(name), 0
    while any(abs(code - other) < 1 / (2 * capacity) for other in codes.values()):
      attempt += 1
      code = hash_code(f"{name}#{attempt}")
    codes[name] = code
  return tuple(codes[name] for name in names)


@dataclasses.dataclass(frozen=True)
class SegClass:
  """One class that the network can segment.

  Attributes:
    name: lower-case, unique in its table.
    code: value in [-1, 1] that represents the class in hash conditioning.
    color: display colour (red, green, blue), 0–255.
    no_mirror: axes ("D", "H", "W") along which a mirrored image would show another class, such as
      "W" for the left kidney.
  """

  name: str
  code: float
  color: tuple[int, int, int]
  no_mirror: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ClassTable:
  """The classes in the order of their ids, and presets (named groups of classes).

  The id of a class is its position, from 0; its value in a label map is id + 1, and 0 is
  background. Stores and checkpoints contain the table: codes are assigned once, in `create`, and
  never recomputed. Classes are mutually exclusive, except the pairs in `overlapping`, such as a
  tumour and its liver: a voxel may be both.
  """

  classes: tuple[SegClass, ...]
  presets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  capacity: int = 64
  overlapping: tuple[tuple[str, str], ...] = ()

  @classmethod
  def create(cls, names: Sequence[str], *, presets: Mapping[str, Sequence[str]] | None = None,
             colors: Mapping[str, Sequence[int]] | None = None,
             no_mirror: Mapping[str, Sequence[str]] | None = None,
             overlapping: Iterable[Sequence[str]] = (), capacity: int = 64) -> "ClassTable":
    """Creates a table and assigns the codes.

    Args:
      names: class names in the order of their ids; case is ignored.
      presets: name of a group → names of its classes.
      colors: name → (red, green, blue), 0–255; evenly spread hues by default.
      no_mirror: name → axes along which the class must not be mirrored.
      overlapping: pairs of names of classes that a voxel may both belong to.
      capacity: number of classes for which the code range is divided.

    Raises:
      InputError: invalid, duplicate or too many names, an empty preset, a preset or pair with an
        unknown class, or an unknown axis.
    """
    names = tuple(normal_name(name) for name in names)
    _check_names(names, capacity)
    colors_of = {normal_name(name): _rgb(color) for name, color in (colors or {}).items()}
    axes_of = {normal_name(name): tuple(axes) for name, axes in (no_mirror or {}).items()}
    codes = distinct_codes(names, capacity)
    classes = tuple(
        SegClass(name, code, colors_of.get(name, hue(i)), axes_of.get(name, ()))
        for i, (name, code) in enumerate(zip(names, codes, strict=True)))
    groups = {normal_name(key): tuple(normal_name(n) for n in group)
              for key, group in (presets or {}).items()}
    pairs = _pairs(overlapping)
    _check_entries(classes, groups, pairs)
    return cls(classes, groups, capacity, pairs)

  def __len__(self) -> int:
    return len(self.classes)

  @property
  def names(self) -> tuple[str, ...]:
    """The class names in the order of the ids."""
    return tuple(c.name for c in self.classes)

  @property
  def colors(self) -> tuple[tuple[int, int, int], ...]:
    """The display colours in the order of the ids."""
    return tuple(c.color for c in self.classes)

  @property
  def codes(self) -> np.ndarray:
    """The class codes in the order of the ids, float32 [K]."""
    return np.array([c.code for c in self.classes], np.float32)

  def index(self, name: str) -> int:
    """Returns the id of a class; the case of `name` is ignored.

    Raises:
      InputError: the class is not in the table.
    """
    try:
      return self.names.index(normal_name(name))
    except ValueError:
      raise InputError(f"class {name!r}", "unknown to this model or dataset",
                       f"choose from: {_join(self.names)}", usage=True) from None

  def select(self, names: Sequence[str] = (), preset: str = "") -> tuple[int, ...]:
    """Returns the ids of the named classes and of a preset, of all classes if neither is given.

    Raises:
      InputError: the preset or a class is not in the table.
    """
    if preset:
      group = self.presets.get(normal_name(preset))
      if group is None:
        known = _join(self.presets) or "this table has none"
        raise InputError(f"preset {preset!r}", "unknown preset", f"presets: {known}", usage=True)
      names = (*names, *group)
    return tuple(dict.fromkeys(self.index(n) for n in names)) or tuple(range(len(self)))

  def beta(self, annotated: Sequence[str]) -> np.ndarray:
    """Returns β of Dmitriev & Kaufman, Eq. 4, float32 [K]: 1 for annotated classes, else 0."""
    beta_K = np.zeros(len(self), np.float32)
    beta_K[[self.index(name) for name in annotated]] = 1
    return beta_K

  @property
  def exclusive(self) -> np.ndarray:
    """Which classes exclude each other, bool [K, K], symmetric; no class excludes itself."""
    exclusive_KK = ~np.eye(len(self), dtype=bool)
    for one, other in self.overlapping:
      i, j = self.index(one), self.index(other)
      exclusive_KK[i, j] = exclusive_KK[j, i] = False
    return exclusive_KK

  def to_json(self) -> dict:
    """Returns the table as JSON-compatible dicts and lists; `from_json` is the inverse."""
    return {"classes": [dataclasses.asdict(c) for c in self.classes],
            "presets": {k: list(v) for k, v in self.presets.items()}, "capacity": self.capacity,
            "overlapping": [list(pair) for pair in self.overlapping]}

  @classmethod
  def from_json(cls, tree: Mapping, *, empty: bool = False) -> "ClassTable":
    """Creates a table from the output of `to_json`, with the codes given there.

    Args:
      tree: the output.
      empty: whether a table without classes is allowed: that of images without masks.

    Raises:
      InputError: as `create`; a code or colour out of its range.
    """
    classes = tuple(SegClass(c["name"], float(c["code"]), _rgb(c["color"]), tuple(c["no_mirror"]))
                    for c in tree["classes"])
    if classes or not empty:
      _check_names([c.name for c in classes], int(tree["capacity"]))
    presets = {normal_name(k): tuple(v) for k, v in tree["presets"].items()}
    pairs = _pairs(tree.get("overlapping", ()))  # former tables have none
    _check_entries(classes, presets, pairs)
    return cls(classes, presets, int(tree["capacity"]), pairs)


def sides(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """Returns class → ("W",) for names with "left" or "right", which a mirror along W would swap."""
  return {normal_name(name): ("W",) for name in names
          if {"left", "right"} & set(re.split(r"[^a-z]+", normal_name(name)))}


def normal_name(name: str) -> str:
  """Returns the canonical spelling of a class name: lower case, no surrounding blanks."""
  return str(name).strip().lower()


def checked_name(name: object, subject: object) -> str:
  """Returns the canonical spelling of a class name that was read from a file.

  Args:
    name: the name.
    subject: the file, for the error.

  Raises:
    InputError: not a text, empty, too long, or with characters that cannot be part of a line or of
      a file name.
  """
  fault = ""
  if not isinstance(name, str):
    fault = "is not a text"
  elif not name.strip():
    fault = "is empty"
  elif len(name.strip()) > MAX_NAME:
    fault = f"has {len(name.strip())} characters, more than {MAX_NAME}"
  elif printable(name.strip()) != name.strip():
    fault = "contains control characters or invalid Unicode"
  elif "/" in name or name.strip() in (".", ".."):
    fault = "is a path"
  if fault:
    raise InputError(subject, f"class name {name!r:.60} {fault}", "rename the class")
  return normal_name(str(name))


def hue(i: int) -> tuple[int, int, int]:
  """Returns a colour for class i; hues are a golden angle apart, so any number is distinct."""
  rgb = colorsys.hsv_to_rgb((0.02 + i * 0.61803398875) % 1.0, 0.75 - 0.2 * (i % 2), 0.95)
  return _rgb(round(255 * x) for x in rgb)


def _check_names(names: Sequence[str], capacity: int) -> None:
  for name in names:
    if checked_name(name, "class table") != name:
      raise InputError("class table", f"the name {name!r} is not in lower case", "correct it")
  duplicates = sorted({n for n in names if names.count(n) > 1})
  if duplicates or not names:
    reason = f"two classes have the same name: {_join(duplicates)}" if names else "has no class"
    raise InputError("class table", reason, "give every class a unique name")
  if len(names) > capacity:
    raise InputError("class table", f"{len(names)} classes exceed the capacity of {capacity}",
                     "raise the capacity before the first training")


def _pairs(pairs: Iterable[Sequence[str]]) -> tuple[tuple[str, str], ...]:
  """Returns the distinct pairs of names, in canonical spelling and alphabetical order."""
  return tuple(sorted({(min(a, b), max(a, b)) for a, b in
                       ((normal_name(a), normal_name(b)) for a, b in pairs)}))


def _check_entries(classes: Sequence[SegClass], presets: Mapping[str, Sequence[str]],
                   overlapping: Iterable[Sequence[str]]) -> None:
  names = [entry.name for entry in classes]
  for name in sorted({name for pair in overlapping for name in pair} - set(names)):
    raise InputError("overlapping", f"unknown class {name!r}", f"classes: {_join(names)}",
                     usage=True)
  for key, group in presets.items():
    if not group:
      raise InputError(f"preset {key!r}", "contains no class", f"classes: {_join(names)}",
                       usage=True)
    for name in sorted(set(group) - set(names)):
      raise InputError(f"preset {key!r}", f"unknown class {name!r}", f"classes: {_join(names)}",
                       usage=True)
  for entry in classes:
    for axis in sorted(set(entry.no_mirror) - set("DHW")):
      raise InputError(f"no_mirror of {entry.name!r}", f"unknown axis {axis!r}", "axes: D, H, W",
                       usage=True)
    if not abs(entry.code) <= 1:  # true for NaN, too
      raise InputError("class table", f"the code {entry.code} of {entry.name!r} is not in [-1, 1]",
                       "restore it from a copy")
    if not all(0 <= value <= 255 for value in entry.color):
      raise InputError("class table", f"the colour {entry.color} of {entry.name!r} is not in "
                       "[0, 255]", "correct it")


def _rgb(color: Iterable[float]) -> tuple[int, int, int]:
  red, green, blue = (int(value) for value in color)
  return red, green, blue


def _join(items: Iterable[object]) -> str:
  return ", ".join(str(i) for i in items)
