"""Outlines of masks as closed polygons, one slice at a time.

A polygon runs half-way between the centres of a voxel inside and a voxel outside (level 0.5), so
that exactly the centres of the mask lie in it; the corners of a box are cut off by half a voxel. A
hole is part of the polygon around it, by a channel of no width to the nearest corner (the keyhole
technique of DICOM PS3.3, C.8.8.6.3): filled by any rule, the polygon leaves the hole out. What lies
within a hole is a polygon of its own.
"""

import contourpy
import numpy as np


def outlines(mask_HW: np.ndarray) -> list[np.ndarray]:
  """The polygons of a mask.

  Args:
    mask_HW: bool.

  Returns:
    float64 [corners, 2] each, (row, column) indices, at least three corners, none twice in a row;
    the last is joined to the first.
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
  """A ring without the points on straight lines; its coordinates are halves, so this is exact."""
  before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
  return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _keyholed(rings: list[np.ndarray]) -> np.ndarray:
  """An outer ring and the rings of its holes, which run the other way, as one."""
  joined = rings[0]
  for hole in rings[1:]:
    distances = ((joined[:, None] - hole[None]) ** 2).sum(-1)
    at, to = np.unravel_index(distances.argmin(), distances.shape)
    joined = np.concatenate([joined[:at + 1], hole[to:], hole[:to + 1], joined[at:]])
  return joined
