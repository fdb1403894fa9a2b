"""Class ids to the vectors that stand for the classes."""

import json
import math

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
      text       v = W t_c / |t_c| with a fixed vector t_c, the embedding of a text about the class,
                 and a learned W (after Liu et al., CLIP-Driven Universal Model, ICCV 2023)

  Attributes:
    vector: one of these.
    codes: the class codes in the order of the ids, each in [-1, 1].
    size: length E of a vector that is learned.
    texts: for `text`, t_c in the order of the ids.
  """

  vector: str
  codes: tuple[float, ...]
  size: int
  texts: tuple[tuple[float, ...], ...] = ()

  @nn.compact
  def __call__(self, class_id_B: jax.Array) -> jax.Array:
    """int [B] → float32 [B, E]: codes differ by as little as 1/128, which bfloat16 would blur."""
    if self.vector == "hash":
      return jnp.asarray(self.codes, jnp.float32)[class_id_B][:, None]
    if self.vector == "one_hot":
      return jax.nn.one_hot(class_id_B, len(self.codes), dtype=jnp.float32)
    if self.vector == "embedding":
      table = self.param("embedding", nn.initializers.normal(1.0), (len(self.codes), self.size),
                         jnp.float32)
      return table[class_id_B]
    rows = [[x / math.hypot(*row) for x in row] for row in self.texts]
    # Of unit vectors, so that the elements of v have the variance 1, as those of an embedding.
    return nn.Dense(self.size, use_bias=False, kernel_init=nn.initializers.normal(1.0),
                    precision=jax.lax.Precision.HIGHEST, name="projection")(
                        jnp.asarray(rows, jnp.float32)[class_id_B])


# --- Vectors of texts about the classes, made elsewhere and read from a file.
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
