"""How frequent a class is, and where, before any image is looked at: from the training masks."""

from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from condseg_jax.data.store import Case
from condseg_jax.geometry import voxel_ml

GRID = 8  # cells along each axis of the field of view
SPREAD = 1.0  # cells: positions are known from 64 voxels of each case
DOUBT = 0.05  # part of a class that may lie anywhere


def class_priors(cases: Iterable[Case], names: Sequence[str]) -> dict[str, dict]:
  """Frequency and location of every class in the cases that annotate it, for JSON.

  Locations are relative to the field of view, so they mean something where fields of view are
  alike. Every case that shows the class weighs the same.

  Args:
    cases: of the training.
    names: the classes.

  Returns:
    Class → {"frequency": mean part of the voxels, "location": nested lists of `GRID` numbers along
    each canonical axis: how many times as frequent as on average the class is in a cell; its mean
    is 1}. Classes without a positive voxel are left out.
  """
  found = {}
  cases = list(cases)
  for name in names:
    annotated = [case for case in cases if name in case.annotated]
    shown = [case for case in annotated if case.foreground.get(name)]
    if not shown:
      continue
    maps = []
    for case in shown:
      cell = (np.asarray(case.foreground[name]) + 0.5) / np.asarray(case.shape) * GRID
      counts, _ = np.histogramdd(cell, [np.arange(GRID + 1)] * len(case.shape))
      maps.append(counts / counts.mean())
    location = (1 - DOUBT) * _smooth(np.mean(maps, axis=0)) + DOUBT
    frequency = np.mean([case.positives.get(name, 0) / np.prod(case.shape) for case in annotated])
    found[name] = {"frequency": float(frequency), "location": np.round(location, 4).tolist()}
  return found


def smallest_ml(cases: Iterable[Case]) -> dict[str, float]:
  """Class → its smallest volume in ml among the cases that show it; in 2-D pixels / 1000."""
  found = {}
  for case in cases:
    voxel = voxel_ml(case.affine)
    for name, count in case.positives.items():
      if count:
        found[name] = min(found.get(name, np.inf), count * voxel)
  return found


def _smooth(cells: np.ndarray) -> np.ndarray:
  """With a Gaussian, and the mean as it was."""
  distance = np.arange(GRID)[:, None] - np.arange(GRID)[None]
  weights = np.exp(-0.5 * (distance / SPREAD) ** 2)
  for axis in range(cells.ndim):
    cells = np.moveaxis(np.tensordot(weights, cells, (1, axis)), 0, axis)
  return cells / cells.mean()
