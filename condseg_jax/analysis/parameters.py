"""What a network is made of: its parameters, and the vectors that stand for its classes."""

from collections.abc import Mapping
import math
from typing import NamedTuple

import jax
import numpy as np


class Parameter(NamedTuple):
  """An array of parameters."""

  name: str
  shape: tuple[int, ...]
  count: int


def parameter_table(params: Mapping) -> list[Parameter]:
  """Every array of a tree of parameters, by its names joined with `/`."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [Parameter("/".join(str(key.key) for key in path), tuple(leaf.shape),
                    math.prod(leaf.shape)) for path, leaf in leaves]


def class_vectors(params: Mapping) -> np.ndarray | None:
  """The learned vectors of the classes, [K, E]; None where they are not learned."""
  found = params.get("class_vector", {}).get("embedding")
  return None if found is None else np.asarray(found, np.float64)


def principal_plane(vectors_KE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Vectors in the plane in which they vary most (principal components).

  The sign of an axis is such that the largest weight on it is positive.

  Returns:
    (coordinates [K, 2], part of the variance along each axis [2]); zeros where there is none.
  """
  vectors = np.asarray(vectors_KE, np.float64)
  centred = vectors - vectors.mean(0)
  _, values, axes = np.linalg.svd(centred, full_matrices=False)
  axes, squares = axes[:2], values ** 2
  axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
  plane, parts = np.zeros((len(vectors), 2)), np.zeros(2)
  plane[:, :len(axes)] = centred @ axes.T
  if squares.sum() > 0:
    parts[:len(axes)] = squares[:2] / squares.sum()
  return plane, parts
