"""Renders a volume and its label map as two PNG images from which a browser cuts slices.

An image tiles the axial slices of the canonical volume row by row, `columns` per row, from inferior
to superior; the browser cuts the other two planes from the same voxels. Axes of more than
`MAX_SIDE` voxels are subsampled.
"""

import io
import math

import numpy as np
from PIL import Image

from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.report.display import ABDOMEN_HU
from condseg_jax.report.display import robust_window

MAX_SIDE = 256


def draw_view(volume: Volume, label: Volume, modality: str) -> tuple[bytes, bytes, dict]:
  """Renders the images for the page.

  Args:
    volume: the image, on any grid.
    label: label map on the same grid.
    modality: of the plan; CT is shown in the standard abdominal window.

  Returns:
    The image as a grey PNG; the label map as a PNG with the low byte of a value in red and the high
    byte in green; and their layout: `shape` (D, H, W), `columns`, `spacing` in mm.
  """
  image, labels = to_canonical(volume), to_canonical(label).array
  if modality == "ct":
    low, high = ABDOMEN_HU
  else:
    low, high = map(float, robust_window(image.array.ravel(order="K")))  # in memory order: no copy
  indices = [_subsample(size) for size in image.geometry.shape]
  displayed = image.array[np.ix_(*indices)].astype(np.float32)
  grey = np.clip((displayed - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
  values = labels[np.ix_(*indices)]
  columns = math.ceil(math.sqrt(grey.shape[0] * grey.shape[1] / grey.shape[2]))
  red_green = np.stack([_tile(values & 255, columns), _tile(values >> 8, columns)], axis=-1)
  rgb = np.pad(red_green.astype(np.uint8), [(0, 0), (0, 0), (0, 1)])
  spacing = [step * size / len(index) for step, size, index
             in zip(image.spacing, image.geometry.shape, indices, strict=True)]
  layout = {"shape": list(grey.shape), "columns": columns, "spacing": spacing}
  return _png(_tile(grey, columns)), _png(rgb), layout


def _subsample(size: int) -> np.ndarray:
  """Returns the indices of at most `MAX_SIDE` evenly spaced voxels along an axis."""
  count = min(size, MAX_SIDE)
  return ((np.arange(count) + 0.5) * (size / count)).astype(np.intp)


def _tile(array_DHW: np.ndarray, columns: int) -> np.ndarray:
  """Tiles the slices of a volume, `columns` per row."""
  depth, height, width = array_DHW.shape
  rows = math.ceil(depth / columns)
  padded = np.pad(array_DHW, [(0, rows * columns - depth), (0, 0), (0, 0)])
  grid = padded.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
  return grid.reshape(rows * height, columns * width)


def _png(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, "PNG", compress_level=3)
  return stream.getvalue()
