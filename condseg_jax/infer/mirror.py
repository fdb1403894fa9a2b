"""Mirroring at prediction: the mean over a window and its reflections."""

from collections.abc import Sequence
import itertools

import jax.numpy as jnp

from condseg_jax.infer.predict import WindowFunctions


def mirrored(functions: WindowFunctions, axes: Sequence[int]) -> WindowFunctions:
  """Functions that take 2^n times as long for n axes.

  Args:
    functions: of the network.
    axes: spatial ones, along which the training mirrored, too.
  """
  subsets = [subset for n in range(len(axes) + 1) for subset in itertools.combinations(axes, n)]

  def encode(variables, image, class_id_K):
    return tuple(functions.encode(variables, jnp.flip(image, [1 + a for a in subset]), class_id_K)
                 for subset in subsets)

  def decode(variables, features, class_id_K):
    total = 0
    for subset, one in zip(subsets, features, strict=True):
      planes = functions.decode(variables, one, class_id_K)
      total = total + jnp.flip(planes, [2 + a for a in subset])
    return total / len(subsets)

  return functions._replace(encode=encode, decode=decode)
