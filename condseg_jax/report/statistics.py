"""Measures the structures of a case: volume, intensity, position, confidence.

The volume of a structure that reaches the edge of the image is that of its visible part; such a
structure is marked, since its true volume is unknown.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import os

import numpy as np

from condseg_jax.geometry import Volume
from condseg_jax.geometry import voxel_ml
from condseg_jax.report.tables import write_summary

DIGITS = 6  # significant digits in the file


def label_statistics(image: Volume, label: np.ndarray, names: Mapping[str, int],
                     confidence: Mapping[str, float | None] | None = None) -> dict[str, dict]:
  """Measures every structure of a label map, see `structure_statistics`.

  The image is read once, slice by slice, whatever the number of classes.

  Args:
    image: the image; the intensity of a voxel is the mean of its channels.
    label: integers on the same grid; values not in `names` are ignored.
    names: class → value.
    confidence: class → mean probability of its voxels, if known.

  Returns:
    Class → its statistics.
  """
  sums = _Sums(max([0, *names.values()]) + 1, image.ndim)
  order = np.argsort(label.strides)[::-1]  # memory order, so that slices are contiguous

  def ordered(array):
    return array.transpose([*order, *range(image.ndim, array.ndim)])

  for number, plane in enumerate(ordered(label)):
    places = np.nonzero(plane)
    values = plane[places].astype(np.intp)
    known = values < sums.size
    values, places = values[known], tuple(p[known] for p in places)
    if not len(values):
      continue
    intensity = ordered(image.array)[number][places].astype(np.float64)
    if intensity.ndim > 1:
      intensity = intensity.mean(-1)
    index = np.empty((image.ndim, len(values)))
    index[order] = [np.full(len(values), number), *places]
    sums.add(values, index, intensity)
  border = set(np.unique(np.concatenate([face.ravel() for face in _faces(label)])).tolist())
  confidence = confidence or {}
  return {name: sums.describe(value, image.affine, value in border)
          | {"confidence": confidence.get(name)} for name, value in names.items()}


def structure_statistics(image: Volume, mask: np.ndarray,
                         confidence: float | None = None) -> dict:
  """Measures one structure.

  Args:
    image: see `label_statistics`.
    mask: bool, on the same grid.
    confidence: mean probability of its voxels.

  Returns:
    Values for JSON: `volume_ml` from the affine, shear included (`area_px` in 2-D); `voxels`;
    `mean` and `sd` of the intensity and `centroid_mm` in RAS+ (`centroid_px` in 2-D), None for an
    empty mask; `touches_border`, whether a voxel lies at the edge of the image; `confidence`.
  """
  return label_statistics(image, mask.view(np.uint8), {"": 1}, {"": confidence})[""]


def write_statistics(path: str | os.PathLike, image: Volume, classes: Mapping[str, Mapping],
                     findings: Iterable[str] = ()) -> None:
  """Writes the statistics of a case atomically as JSON.

  Args:
    path: file to write.
    image: the image.
    classes: class → `structure_statistics`.
    findings: lines about the plausibility of the image, from `image_check.enforce`.
  """
  write_summary(path, {
      "shape": list(image.geometry.shape), "spacing": [_rounded(s) for s in image.spacing],
      "unit": "mm" if image.ndim == 3 else "px",
      "classes": {name: {key: _rounded(value) for key, value in entry.items()}
                  for name, entry in classes.items()},
      "findings": list(findings)})


class _Sums:
  """Accumulates counts, means and squared deviations per label value.

  Partial results are merged after Chan et al. (1979): plain sums of squares would lose precision
  if the mean is far from 0.
  """

  def __init__(self, size: int, ndim: int):
    self.size = size
    self.count, self.mean, self.squares = np.zeros((3, size))
    self.index = np.zeros((ndim, size))

  def add(self, values, index, intensity) -> None:
    def total(weights):
      return np.bincount(values, weights, minlength=self.size)
    count = np.bincount(values, minlength=self.size).astype(np.float64)
    mean = total(intensity) / np.maximum(count, 1)
    squares = total((intensity - mean[values]) ** 2)
    both = np.maximum(self.count + count, 1)
    step = mean - self.mean
    self.squares += squares + step ** 2 * self.count * count / both
    self.mean += step * count / both
    self.count += count
    self.index += [total(axis) for axis in index]

  def describe(self, value: int, affine: np.ndarray, border: bool) -> dict:
    count, space = int(self.count[value]), len(affine) - 1 == 3
    ml = count * voxel_ml(affine)
    centroid = None
    if count:
      centroid = affine[:-1, :-1] @ (self.index[:, value] / count) + affine[:-1, -1]
    return {
        **({"volume_ml": ml} if space else {"area_px": 1000 * ml}), "voxels": count,
        "mean": float(self.mean[value]) if count else None,
        "sd": float(np.sqrt(self.squares[value] / count)) if count else None,
        "touches_border": bool(border and count),
        "centroid_mm" if space else "centroid_px": centroid.tolist() if count else None}


def _faces(array: np.ndarray) -> Iterable[np.ndarray]:
  for axis in range(array.ndim):
    yield from (np.moveaxis(array, axis, 0)[end] for end in (0, -1))  # views


def _rounded(value):
  if isinstance(value, list):
    return [_rounded(v) for v in value]
  return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
