"""A volume and its label map as two PNG pictures, for a browser to cut slices from.

A picture holds the axial slices of the canonical volume row by row, `columns` in a row, from the
lowest; the other two planes are cut from the same voxels. Volumes of more than `MAX_SIDE` voxels
along an axis are thinned for display.
"""

import io
import math

import numpy as np
from PIL import Image

from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.report.figures import ABDOMEN_HU

MAX_SIDE = 256
SAMPLE = 1_000_000  # voxels from which the window is taken


def draw_view(volume: Volume, label: Volume, modality: str) -> tuple[bytes, bytes, dict]:
  """Pictures for the page.

  Args:
    volume: the image, on any grid.
    label: its label map.
    modality: of the plan; CT is drawn in the window in which radiologists read an abdomen.

  Returns:
    The image as a grey PNG; the label map as a PNG whose red and green are the low and the high
    byte of a value; and how to read them: `shape` (D, H, W), `columns`, `spacing` in mm.
  """
  image, labels = to_canonical(volume), to_canonical(label).array
  low, high = ABDOMEN_HU if modality == "ct" else _window(image.array)
  picks = [_picks(size) for size in image.geometry.shape]
  shown = image.array[np.ix_(*picks)].astype(np.float32)
  grey = np.clip((shown - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
  values = labels[np.ix_(*picks)]
  columns = math.ceil(math.sqrt(grey.shape[0] * grey.shape[1] / grey.shape[2]))
  red_green = np.stack([_sheet(values & 255, columns), _sheet(values >> 8, columns)], axis=-1)
  painted = np.pad(red_green.astype(np.uint8), [(0, 0), (0, 0), (0, 1)])
  spacing = [step * size / len(pick) for step, size, pick
             in zip(image.spacing, image.geometry.shape, picks, strict=True)]
  layout = {"shape": list(grey.shape), "columns": columns, "spacing": spacing}
  return _png(_sheet(grey, columns)), _png(painted), layout


def _picks(size: int) -> np.ndarray:
  count = min(size, MAX_SIDE)
  return ((np.arange(count) + 0.5) * (size / count)).astype(np.intp)


def _window(array: np.ndarray) -> tuple[float, float]:
  sample = array.ravel(order="K")[::max(1, array.size // SAMPLE)].astype(np.float32)
  return tuple(float(x) for x in np.percentile(sample, [1, 99.5]))


def _sheet(array_DHW: np.ndarray, columns: int) -> np.ndarray:
  """Slices side by side, `columns` in a row."""
  depth, height, width = array_DHW.shape
  rows = math.ceil(depth / columns)
  padded = np.pad(array_DHW, [(0, rows * columns - depth), (0, 0), (0, 0)])
  grid = padded.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
  return grid.reshape(rows * height, columns * width)


def _png(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(array).save(stream, "PNG", compress_level=3)
  return stream.getvalue()
