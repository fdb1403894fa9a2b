"""What was found in a case, in numbers: volume, intensity, place, confidence of every structure.

A structure that reaches the edge of the image has the volume that the image shows of it, and says
that it does: what lies beyond is unknown, not zero.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import os

import numpy as np

from condseg_jax.geometry import Volume
from condseg_jax.geometry import voxel_ml
from condseg_jax.report.tables import write_summary

DIGITS = 6  # significant, in the file


def label_statistics(image: Volume, label: np.ndarray, names: Mapping[str, int],
                     confidence: Mapping[str, float | None] | None = None) -> dict[str, dict]:
  """Every structure of a label map; see `structure_statistics` for what is said of each.

  The image is read once, slice by slice, however many classes there are.

  Args:
    image: spatial axes, and channels if any, whose mean is the intensity then.
    label: integers on the same grid; values that are not named count for nothing.
    names: class → value.
    confidence: class → mean probability of its voxels, where it is known.
  """
  sums = _Sums(max([0, *names.values()]) + 1, image.ndim)
  order = np.argsort(label.strides)[::-1]  # as it lies in memory, so that slices are read in a row

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
  """One structure.

  Args:
    image: as in `label_statistics`.
    mask: bool, on the same grid.
    confidence: mean probability of its voxels.

  Returns:
    For JSON: `volume_ml`, from the affine, so that a shear counts (`area_px` in 2-D); `voxels`;
    `mean` and `sd` of the intensity inside and `centroid_mm` in RAS+ (`centroid_px` in 2-D), all
    three None where there is no voxel; `touches_border`, whether a voxel lies at the edge of the
    image; `confidence` as it was given.
  """
  return label_statistics(image, mask.view(np.uint8), {"": 1}, {"": confidence})[""]


def write_statistics(path: str | os.PathLike, image: Volume, structures: Mapping[str, Mapping],
                     findings: Iterable[str] = ()) -> None:
  """Writes the statistics of a case; the file appears whole or not at all.

  Args:
    path: of the JSON file.
    image: the case.
    structures: class → `structure_statistics`.
    findings: what was found of its plausibility.
  """
  write_summary(path, {
      "shape": list(image.geometry.shape), "spacing": [_rounded(s) for s in image.spacing],
      "unit": "mm" if image.ndim == 3 else "px",
      "structures": {name: {key: _rounded(value) for key, value in entry.items()}
                     for name, entry in structures.items()},
      "findings": list(findings)})


class _Sums:
  """Counts, means and squared deviations per label value, joined part by part (Chan et al., 1979):
  sums of squares would lose their digits where the mean is far from 0."""

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
