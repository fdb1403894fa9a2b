"""Vectors of texts about the classes, made elsewhere and read from a file."""

from collections.abc import Mapping
import json
import math

from etils import epath

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.errors import InputError


def with_texts(config: Mapping, table: ClassTable) -> Mapping:
  """A config with `conditioning.texts`, where `conditioning.vector` is `text`.

  So the checkpoint holds the vectors and needs no file.
  """
  conditioning = config["conditioning"]
  if conditioning["vector"] != "text":
    return config
  texts = read_texts(conditioning["text_vectors"], table)
  return {**config, "conditioning": {**conditioning, "texts": texts}}


def read_texts(path, table: ClassTable) -> list[list[float]]:
  """One vector for each class of the table, in the order of the ids.

  Args:
    path: JSON, {"liver": [0.1, -0.3, …], …}: of any text encoder; vectors of one length. Names that
      are no class are passed over.
    table: the classes.

  Raises:
    InputError: no or damaged file, a class without vector, vectors that are none.
  """
  cure = 'write {"CLASS": [numbers], …}, vectors of one length, for every class'
  if not str(path):
    raise InputError("conditioning.text_vectors", "is not set",
                     "name a file with a vector for each class", usage=True)
  try:
    tree = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    vectors = {normal_name(name): [float(x) for x in row] for name, row in tree.items()}
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise InputError(path, f"cannot be read ({error})", cure) from error
  found = []
  for name in table.names:
    row = vectors.get(name)
    if row is None:
      raise InputError(path, f"has no vector for the class {name!r}", cure)
    if not row or not any(row) or not all(map(math.isfinite, row)):
      raise InputError(path, f"the vector of {name!r} is empty, zero or not finite", cure)
    if found and len(row) != len(found[0]):
      raise InputError(path, f"the vector of {name!r} has {len(row)} numbers, that of "
                       f"{table.names[0]!r} {len(found[0])}", cure)
    found.append(row)
  return found
