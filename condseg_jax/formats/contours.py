"""Outlines of masks as closed polygons, slice by slice.

A polygon runs half-way between the centres of a voxel inside and a voxel outside (level 0.5), so
that it contains exactly the voxel centres of the mask; the corners of a box are cut off by half a
voxel. A hole is connected to the polygon around it by a channel of zero width at the closest corner
(keyhole technique, DICOM PS3.3, C.8.8.6.3): with any fill rule, the polygon excludes the hole.
Structures within a hole are polygons of their own.
"""

import contourpy
import numpy as np


def outlines(mask_HW: np.ndarray) -> list[np.ndarray]:
  """Returns the polygons of a mask.

  Args:
    mask_HW: bool.

  Returns:
    A float64 array [corners, 2] of (row, column) indices for each polygon: at least three corners,
    no two successive corners equal; the last corner connects to the first.
  """
  rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
  if not len(rows):
    return []
  first = np.array([rows[0], columns[0]])
  inside = mask_HW[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
  generator = contourpy.contour_generator(z=np.pad(inside, 1).astype(np.float64),
                                          fill_type=contourpy.FillType.OuterOffset)
  polygons = []
  for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
    rings = [_corners(points[start:end - 1])  # the last point repeats the first
             for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
    polygons.append(_keyholed(rings)[:, ::-1] - 1.0 + first)
  return polygons


def _corners(ring: np.ndarray) -> np.ndarray:
  """Removes the points on straight lines; exact, since coordinates are multiples of a half."""
  before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
  return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _keyholed(rings: list[np.ndarray]) -> np.ndarray:
  """Joins an outer ring and the rings of its holes, which have the opposite orientation."""
  joined = rings[0]
  for hole in rings[1:]:
    distances = ((joined[:, None] - hole[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    joined = np.concatenate([joined[:i + 1], hole[j:], hole[:j + 1], joined[i:]])
  return joined
