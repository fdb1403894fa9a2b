"""Parameters of a network and the learned vectors of its classes."""

from collections.abc import Mapping
import math
from typing import NamedTuple

import jax
import numpy as np


class Parameter(NamedTuple):
  """An array of parameters.

  Attributes:
    name: path in the tree, joined with `/`.
    shape: shape of the array.
    count: number of elements.
  """

  name: str
  shape: tuple[int, ...]
  count: int


def parameter_table(params: Mapping) -> list[Parameter]:
  """Lists the arrays of a tree of parameters."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [Parameter("/".join(str(key.key) for key in path), tuple(leaf.shape),
                    math.prod(leaf.shape)) for path, leaf in leaves]


def class_vectors(params: Mapping) -> np.ndarray | None:
  """Returns the learned vectors of the classes, [K, E], or None if they are not learned."""
  vectors = params.get("class_vector", {}).get("embedding")
  return None if vectors is None else np.asarray(vectors, np.float64)


def principal_plane(vectors_KE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Projects vectors on their first two principal components.

  The largest weight of each component is positive.

  Args:
    vectors_KE: K vectors of length E.

  Returns:
    Coordinates [K, 2] and the share of variance along each axis [2]; zeros for missing components.
  """
  vectors = np.asarray(vectors_KE, np.float64)
  centred = vectors - vectors.mean(0)
  _, values, axes = np.linalg.svd(centred, full_matrices=False)
  axes, squares = axes[:2], values ** 2
  axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
  plane, shares = np.zeros((len(vectors), 2)), np.zeros(2)
  plane[:, :len(axes)] = centred @ axes.T
  if squares.sum() > 0:
    shares[:len(axes)] = squares[:2] / squares.sum()
  return plane, shares
