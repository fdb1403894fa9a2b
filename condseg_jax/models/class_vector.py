"""Class vectors: maps class ids to the vectors that represent the classes."""

import json
import math
import os

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.errors import InputError

VECTORS = ("hash", "one_hot", "embedding", "text")


class ClassVector(nn.Module):
  """The vector v of a class.

      hash       v = [hash(c)], the fixed code of the class table (Dmitriev & Kaufman, CVPR 2019)
      one_hot    v = e_c
      embedding  v = E_c, a learned row for each class
      text       v = W t_c / |t_c| with a learned W and a fixed text embedding t_c of the class
                 (after Liu et al., CLIP-Driven Universal Model, ICCV 2023)

  Attributes:
    vector: a name in `VECTORS`.
    codes: class codes in the order of the ids, each in [-1, 1].
    size: length E of a learned vector.
    texts: for `text`, t_c in the order of the ids.
  """

  vector: str
  codes: tuple[float, ...]
  size: int
  texts: tuple[tuple[float, ...], ...] = ()

  @nn.compact
  def __call__(self, class_id_B: jax.Array) -> jax.Array:
    """Returns float32 [B, E]: in bfloat16, codes as close as 1/128 would be rounded together.

    Args:
      class_id_B: int class ids.
    """
    if self.vector == "hash":
      return jnp.asarray(self.codes, jnp.float32)[class_id_B][:, None]
    if self.vector == "one_hot":
      return jax.nn.one_hot(class_id_B, len(self.codes), dtype=jnp.float32)
    if self.vector == "embedding":
      table = self.param("embedding", nn.initializers.normal(1.0), (len(self.codes), self.size),
                         jnp.float32)
      return table[class_id_B]
    rows = [[x / math.hypot(*row) for x in row] for row in self.texts]
    # Initialised for unit vectors, so that the elements of v have variance 1, as in an embedding.
    return nn.Dense(self.size, use_bias=False, kernel_init=nn.initializers.normal(1.0),
                    precision=jax.lax.Precision.HIGHEST, name="projection")(
                        jnp.asarray(rows, jnp.float32)[class_id_B])


# --- text embeddings, computed by any text encoder and read from a file ---------------------------
def read_texts(path: str | os.PathLike, table: ClassTable) -> list[list[float]]:
  """Reads one text embedding per class of the table, in the order of the ids.

  Args:
    path: JSON, {"liver": [0.1, -0.3, …], …}, vectors of equal length. Names that are not in the
      table are ignored.
    table: the classes.

  Raises:
    InputError: the file is missing or damaged, or a vector is missing or invalid.
  """
  cure = 'write {"CLASS": [numbers], …} with vectors of equal length for all classes'
  if not str(path):
    raise InputError("conditioning.text_vectors", "is not set",
                     "name a file with a vector for each class", usage=True)
  try:
    tree = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    vectors = {normal_name(name): [float(x) for x in row] for name, row in tree.items()}
  except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(path, f"cannot be read ({error})", cure) from error
  texts = []
  for name in table.names:
    vector = vectors.get(name)
    if vector is None:
      raise InputError(path, f"has no vector for the class {name!r}", cure)
    if not vector or not any(vector) or not all(map(math.isfinite, vector)):
      raise InputError(path, f"the vector of {name!r} is empty, zero or not finite", cure)
    if texts and len(vector) != len(texts[0]):
      raise InputError(path, f"the vector of {name!r} has {len(vector)} numbers, that of "
                       f"{table.names[0]!r} has {len(texts[0])}", cure)
    texts.append(vector)
  return texts
