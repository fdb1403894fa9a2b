"""Class ids to the vectors that stand for the classes."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

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
