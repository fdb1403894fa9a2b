"""What is known of structures and a network does not see: they hang together, and have a size.

Whatever changes a label map does so in place, one structure at a time and inside of its box.
"""

import dataclasses

import numpy as np
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class ComponentFilter:
  """What is done to the pieces of one class.

  Attributes:
    largest: keep the largest piece only.
    minimum_ml: remove pieces that are smaller; in 2-D, mm² / 1000 by the same number.
  """

  largest: bool = False
  minimum_ml: float = 0.0


def clean(label: np.ndarray, value: int, cleaning: ComponentFilter, voxel_ml: float) -> None:
  """Removes pieces of a structure; pieces touch by faces, edges or corners.

  Args:
    label: label map.
    value: of the structure.
    cleaning: what to remove.
    voxel_ml: volume of a voxel in ml.
  """
  box, pieces, count = _pieces(label, value)
  if not count:
    return
  sizes = np.bincount(pieces.ravel(), minlength=count + 1)
  keep = sizes * voxel_ml >= cleaning.minimum_ml
  if cleaning.largest:
    keep &= np.arange(count + 1) == 1 + sizes[1:].argmax()
  keep[0] = True
  label[box][~keep[pieces]] = 0


def drop_detached(label: np.ndarray, part: int, whole: int) -> None:
  """Removes pieces of a part (a tumour) that do not touch the structure it is part of (the liver).

  A piece that touches another piece of the part touches what that one touches.
  """
  box, pieces, count = _pieces(label, part)
  if not count:
    return
  around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
  near = ndimage.binary_dilation(label[around] == whole, np.ones((3,) * label.ndim))
  inner = tuple(slice(s.start - a.start, s.stop - a.start)
                for s, a in zip(box, around, strict=True))
  keep = np.zeros(count + 1, bool)
  keep[pieces[near[inner]]] = True
  keep[0] = True
  label[box][~keep[pieces]] = 0


def main_box(label: np.ndarray, value: int, part: float = 0.1) -> tuple[slice, ...]:
  """The box around the largest piece of a structure and all that have a `part` of its voxels.

  Empty slices at 0 where there is none.
  """
  box, pieces, count = _pieces(label, value)
  if not count:
    return (slice(0, 0),) * label.ndim
  sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
  chosen = [inner for inner, size in zip(ndimage.find_objects(pieces), sizes, strict=True)
            if size >= part * sizes.max()]
  return tuple(slice(outer.start + min(c[axis].start for c in chosen),
                     outer.start + max(c[axis].stop for c in chosen))
               for axis, outer in enumerate(box))


def _pieces(label: np.ndarray, value: int):
  """The box of a structure, its pieces numbered from 1 in that box, and their number."""
  found = label == value
  axes = [np.flatnonzero(found.any(tuple(a for a in range(label.ndim) if a != axis)))
          for axis in range(label.ndim)]
  if not len(axes[0]):
    return (), None, 0
  box = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in axes)
  pieces, count = ndimage.label(found[box], np.ones((3,) * label.ndim))
  return box, pieces, count
