"""Renders an image and its label map as two PNG images from which a browser cuts slices.

An image tiles the axial slices of the canonical volume row by row, `columns` per row, from inferior
to superior; the browser cuts the other two planes from the same voxels. A picture is one slice.
Axes of more voxels than `MAX_SIDE` are subsampled.
"""

import io
import math

import numpy as np
from PIL import Image

from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.report.display import ABDOMEN_HU
from condseg_jax.report.display import robust_window

MAX_SIDE = {2: 1024, 3: 256}  # by the number of axes of an image


def draw_view(volume: Volume, label: Volume, modality: str) -> tuple[bytes, bytes, dict]:
  """Renders the images for the page.

  Args:
    volume: the image, on any grid; a picture may have colours.
    label: label map on the same grid.
    modality: of the plan; CT is shown in the standard abdominal window.

  Returns:
    The image as a PNG, grey or in colours; the label map as a PNG with the low byte of a value in
    red and the high byte in green; and their layout: number of `axes`, `shape` (D, H, W),
    `columns`, `spacing` in mm or pixels.
  """
  image, labels = to_canonical(volume), to_canonical(label).array
  if modality == "ct":
    low, high = ABDOMEN_HU
  elif image.ndim == 2 and image.array.dtype == np.uint8:
    low, high = 0, 255
  else:
    low, high = map(float, robust_window(image.array.ravel(order="K")))  # in memory order: no copy
  axes = image.ndim
  indices = [_subsample(size, MAX_SIDE[axes]) for size in image.geometry.shape]
  displayed = image.array[np.ix_(*indices)].astype(np.float32)
  grey = np.clip((displayed - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
  values = labels[np.ix_(*indices)]
  if axes == 2:
    grey, values = grey[None], values[None]
  columns = math.ceil(math.sqrt(grey.shape[0] * grey.shape[1] / grey.shape[2]))
  red_green = np.stack([_tile(values & 255, columns), _tile(values >> 8, columns)], axis=-1)
  rgb = np.pad(red_green.astype(np.uint8), [(0, 0), (0, 0), (0, 1)])
  spacing = [step * size / len(index) for step, size, index
             in zip(image.spacing, image.geometry.shape, indices, strict=True)]
  layout = {"axes": axes, "shape": list(values.shape), "columns": columns,
            "spacing": spacing if axes == 3 else [1.0, *spacing]}
  return _png(_tile(grey, columns)), _png(rgb), layout


def _subsample(size: int, most: int) -> np.ndarray:
  """Returns the indices of at most `most` evenly spaced voxels along an axis."""
  count = min(size, most)
  return ((np.arange(count) + 0.5) * (size / count)).astype(np.intp)


def _tile(array_DHWC: np.ndarray, columns: int) -> np.ndarray:
  """Tiles the slices of a volume, with or without a last axis of colours, `columns` per row."""
  depth, height, width, *colors = array_DHWC.shape
  rows = math.ceil(depth / columns)
  padded = np.pad(array_DHWC, [(0, rows * columns - depth)] + [(0, 0)] * (array_DHWC.ndim - 1))
  grid = padded.reshape(rows, columns, height, width, *colors).swapaxes(1, 2)
  return grid.reshape(rows * height, columns * width, *colors)


def _png(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, "PNG", compress_level=3)
  return stream.getvalue()
