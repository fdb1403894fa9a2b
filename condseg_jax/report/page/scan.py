"""Encodes a volume and its label maps for the viewer: NIfTI in base64, 8 bits, limited size."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import gzip

import nibabel as nib
import numpy as np
from scipy import ndimage

from condseg_jax import resample
from condseg_jax.classes import UNLABELLED
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import Volume

LIMIT = 256  # voxels along each axis
MAX_CLASSES = 253  # of a case: 8-bit values without background and unlabelled
_SLAB = 16  # rows resampled at a time
_LABEL_INTENT = 1002


@dataclasses.dataclass(frozen=True)
class Scan:
  """The data of a case for the viewer.

  Attributes:
    image: gzipped NIfTI in base64; uint8 with slope and intercept to intensities.
    labels: "prediction", "truth", "errors" → label map in the same form; values 1 … n are the
      `classes`, n + 1 is unlabelled.
    classes: names of the classes.
    centres: class → position of a voxel of the prediction near its centre, RAS+ world mm.
    focus: initial position of the crosshair, RAS+ world mm.
  """

  image: str
  labels: Mapping[str, str]
  classes: tuple[str, ...]
  centres: Mapping[str, tuple[float, ...]]
  focus: tuple[float, ...]

  @property
  def size(self) -> int:
    """Size in a page, in bytes."""
    return len(self.image) + sum(map(len, self.labels.values()))


def encode_scan(volume: Volume, layers: Mapping[str, np.ndarray], ids: Mapping[str, int],
                window: tuple[float, float], focus: Sequence[float], *,
                limit: int = LIMIT) -> Scan | None:
  """Encodes a case for the viewer.

  Args:
    volume: 3-D; only the first channel is used.
    layers: "prediction" and optionally "truth" and "errors" → map on the volume's grid. Label maps
      hold class id + 1, and 255 for unlabelled.
    ids: class → id, of the classes to show.
    window: intensities mapped to 0 and 255.
    focus: initial position of the crosshair, RAS+ world mm.
    limit: largest number of voxels along each axis; larger volumes are resampled, labels by
      majority.

  Returns:
    The encoded case; None if it has more than `MAX_CLASSES` classes.
  """
  if len(ids) > MAX_CLASSES:
    return None
  old = volume.geometry
  spacing = [s * max(1, n / limit) for s, n in zip(old.spacing, old.shape, strict=True)]
  grid = resample.resampled_geometry(old, spacing)
  image = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
  lut = np.zeros(1 << 16, np.uint8)
  lut[UNLABELLED] = len(ids) + 1
  lut[np.array([i + 1 for i in ids.values()], np.intp)] = np.arange(1, len(ids) + 1)
  small = {}
  for name, labels in layers.items():
    labels = resample.resample_to(labels, grid.shape, 0)
    small[name] = labels if name == "errors" else lut[labels]
  low, high = window
  slope = (float(high) - float(low)) / 255 or 1.0
  return Scan(
      _nifti(_windowed(image, grid, window), grid, slope=slope, intercept=float(low)),
      {name: _nifti(labels, grid, intent=_LABEL_INTENT) for name, labels in small.items()},
      tuple(ids), _centres(small["prediction"], grid, tuple(ids)), tuple(map(float, focus)))


def _windowed(image: np.ndarray, grid: Geometry, window: tuple[float, float]) -> np.ndarray:
  """Resamples a 3-D image to uint8 on another grid, a few rows at a time."""
  low, high = window
  out = np.empty(grid.shape, np.uint8, order="F")
  for start in range(0, grid.shape[0], _SLAB):
    rows = slice(start, min(start + _SLAB, grid.shape[0]))
    block = image[resample.source_rows(image.shape, grid.shape, rows)]
    block = np.nan_to_num(block.astype(np.float32), posinf=high, neginf=low, nan=low)
    block = resample.resampled_rows(block, grid.shape, 1, rows, image.shape)
    block = np.clip((block - np.float32(low)) / np.float32(max(high - low, 1e-12)), 0, 1)
    out[rows] = np.rint(block * np.float32(255))
  return out


def _nifti(array: np.ndarray, grid: Geometry, *, slope: float = 1.0, intercept: float = 0.0,
           intent: int = 0) -> str:
  image = nib.Nifti1Image(np.asarray(array, np.uint8), grid.affine)
  image.header.set_slope_inter(slope, intercept)
  image.header.set_xyzt_units("mm")
  if intent:
    image.header.set_intent(intent)
  return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")


def _centres(labels: np.ndarray, grid: Geometry,
             names: Sequence[str]) -> dict[str, tuple[float, ...]]:
  """Finds, for each class, the voxel nearest to its centroid, in RAS+ world mm."""
  centres = {}
  for value, box in enumerate(ndimage.find_objects(labels)[:len(names)], 1):
    if box is None:
      continue
    voxels = np.argwhere(labels[box] == value) + [s.start for s in box]
    nearest = voxels[np.argmin(((voxels - voxels.mean(0)) ** 2).sum(1))]
    world = grid.affine @ np.append(nearest, 1.0)
    centres[names[value - 1]] = tuple(round(float(x), 2) for x in world[:3])
  return centres
