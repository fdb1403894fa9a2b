"""Class priors from the training masks: frequency, location and smallest volume of a class."""

from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from condseg_jax.data.store import Case
from condseg_jax.geometry import voxel_ml

GRID = 8  # cells along each axis of the field of view
SPREAD = 1.0  # sd of the smoothing in cells; each case contributes at most 64 voxel positions
DOUBT = 0.05  # weight of a uniform distribution in the location


def class_priors(cases: Iterable[Case], names: Sequence[str]) -> dict[str, dict]:
  """Computes the frequency and location of every class over the cases that annotate it.

  Locations are relative to the field of view, so they are meaningful if fields of view are similar.
  Every case with a positive voxel of the class has the same weight.

  Args:
    cases: training cases.
    names: the classes.

  Returns:
    A JSON-compatible dict, class → {"frequency": mean fraction of the voxels, "location": nested
    lists of `GRID` numbers along each canonical axis, the density of the class in a cell relative
    to its average, with mean 1}. Classes without a positive voxel are omitted.
  """
  priors = {}
  cases = list(cases)
  for name in names:
    annotated = [case for case in cases if name in case.annotated]
    positive = [case for case in annotated if case.foreground.get(name)]
    if not positive:
      continue
    maps = np.zeros((len(positive), *(GRID,) * len(positive[0].shape)))
    for counts, case in zip(maps, positive, strict=True):
      cell = (np.asarray(case.foreground[name]) + 0.5) / np.asarray(case.shape) * GRID
      np.add.at(counts, tuple(cell.astype(np.intp).T), 1)
      counts /= counts.mean()
    location = (1 - DOUBT) * _smooth(np.mean(maps, axis=0)) + DOUBT
    frequency = np.mean([case.positives.get(name, 0) / np.prod(case.shape) for case in annotated])
    priors[name] = {"frequency": float(frequency), "location": np.round(location, 4).tolist()}
  return priors


def smallest_ml(cases: Iterable[Case]) -> dict[str, float]:
  """Returns class → its smallest non-zero volume over the cases, in ml (in 2-D pixels / 1000)."""
  smallest: dict[str, float] = {}
  for case in cases:
    voxel = voxel_ml(np.asarray(case.affine))
    for name, count in case.positives.items():
      if count:
        smallest[name] = min(smallest.get(name, np.inf), count * voxel)
  return smallest


def _smooth(cells: np.ndarray) -> np.ndarray:
  """Smooths with a Gaussian and normalises the mean to 1."""
  distance = np.arange(GRID)[:, None] - np.arange(GRID)[None]
  weights = np.exp(-0.5 * (distance / SPREAD) ** 2)
  for axis in range(cells.ndim):
    cells = np.moveaxis(np.tensordot(weights, cells, (1, axis)), 0, axis)
  return cells / cells.mean()
