"""Mutations of inputs, as operations that can be recorded, dropped and applied again.

An input is a dict of files, relative name → content. An operation is a plain dict

    {"file": NAME, "through": [VIEW, …], "do": NAME, "args": [...]}

that changes one file. A file whose name is a random digest, as in checkpoints, is named by its rank
by size among those of its folder, `FOLDER/*2`, so that the operation suits other checkpoints.

Views lead inside: `gzip` to what is compressed, `zip/NAME` and `bundle/NAME` to a member. Digests,
checksums and lengths outside of it are computed anew, so that a change inside is not found by them.
Random operations are drawn per kind of content, see `KINDS`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import random
import re
from typing import NamedTuple

from tools.fuzz import binary
from tools.fuzz import text
from tools.fuzz.packing import BROKEN
from tools.fuzz.packing import changed
from tools.fuzz.packing import Impossible
from tools.fuzz.packing import inside

Files = Mapping[str, bytes]
FILE = "file"
_DIGEST = re.compile("[0-9a-f]{32}")


class Place(NamedTuple):
  """A part of an input that can be mutated.

  Attributes:
    file: name of the file.
    kind: of its content, a key of `KINDS`; or `FILE`, which is deleted, emptied or swapped.
    through: views that lead to the part, outermost first.
    weight: how often it is chosen, relative to the others.
  """

  file: str
  kind: str = "bytes"
  through: tuple[str, ...] = ()
  weight: int = 1


def draw(rng: random.Random, places: Sequence[Place], files: Files) -> dict:
  """Draws an operation."""
  for _ in range(100 if places else 0):
    place = rng.choices(places, [p.weight for p in places])[0]
    if place.file in files and place.kind == FILE:
      do = rng.choice(("delete", "empty", "swap"))
      other = _lasting_name(files, rng.choice(sorted(files)))
      return {"file": _lasting_name(files, place.file), "through": [], "do": do,
              "args": [other] * (do == "swap")}
    if place.file in files:
      try:
        content = inside(files[place.file], place.through)
        do, *arguments = KINDS[place.kind](rng, content)
      except (Impossible, *BROKEN):
        continue
      return {"file": _lasting_name(files, place.file), "through": list(place.through), "do": do,
              "args": arguments}
  raise Impossible("no place is left to mutate")


def apply(files: Files, operation: Mapping) -> dict[str, bytes]:
  """Returns the files after an operation.

  Raises:
    Impossible: the operation does not apply to these files.
  """
  files, name = dict(files), _present_name(files, operation["file"])
  do, arguments = operation["do"], operation["args"]
  if do == "delete":
    del files[name]
  elif do == "swap":
    other = _present_name(files, arguments[0])
    files[name], files[other] = files[other], files[name]
  else:
    try:
      files[name] = changed(files[name], operation["through"],
                            lambda content: OPERATIONS[do](content, *arguments))
    except BROKEN as error:
      raise Impossible(name) from error
  return files


def apply_all(files: Files, operations: Sequence[Mapping]) -> dict[str, bytes]:
  """Returns the files after all operations; those that do not apply are passed over."""
  for operation in operations:
    try:
      files = apply(files, operation)
    except Impossible:
      continue
  return dict(files)


def _lasting_name(files: Files, name: str) -> str:
  folder, _, last = name.rpartition("/")
  return f"{folder}/*{_digests(files, folder).index(name)}" if _DIGEST.fullmatch(last) else name


def _present_name(files: Files, name: str) -> str:
  folder, star, number = name.rpartition("/*")
  names = _digests(files, folder) if star else [name]
  if not names or names[0] not in files:
    raise Impossible(name)
  return names[int(number or 0) % len(names)] if star else name


def _digests(files: Files, folder: str) -> list[str]:
  """Returns the files of a folder whose names are digests, the smallest first."""
  names = [name for name in files if name.rpartition("/")[0] == folder
           and _DIGEST.fullmatch(name.rpartition("/")[2])]
  return sorted(names, key=lambda name: (len(files[name]), name))


OPERATIONS: dict[str, Callable[..., bytes]] = {
    "flip": binary.flip, "put": binary.put, "field": binary.field, "element": binary.element,
    "member": binary.member, "number": binary.number, "line": text.line, "json": text.json_tree,
    "yaml": text.yaml_tree, "head": text.head,
    "cut": lambda content, size: content[:size],
    "drop": lambda content, start, length: content[:start] + content[start + length:],
    "repeat": lambda content, start, length: content[:start + length] + content[start:],
    "zero": lambda content, start, length: content[:start] + bytes(
        len(content[start:start + length])) + content[start + length:],
    "insert": lambda content, start, text: content[:start] + bytes.fromhex(text) + content[start:],
    "empty": lambda _content: b"",
    "grow": lambda content, text: content + bytes.fromhex(text),
}
# Kind of content → function that draws an operation and its arguments.
KINDS: dict[str, Callable[[random.Random, bytes], tuple]] = {
    "bytes": binary.draw_bytes, "nifti": binary.draw_field, "dicom": binary.draw_element,
    "zip": binary.draw_member, "array": binary.draw_array, "lines": text.draw_line,
    "json": text.draw_json, "yaml": text.draw_yaml, "head": text.draw_head,
}
