"""Post-processing of label maps by connected components.

All functions modify the label map in place, one structure at a time, within its bounding box.
"""

import dataclasses

import numpy as np
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class ComponentFilter:
  """Which connected components of a class are kept.

  Attributes:
    largest: keep only the largest component.
    minimum_ml: remove components smaller than this volume; in 2-D, mm² / 1000.
  """

  largest: bool = False
  minimum_ml: float = 0.0


def clean(label: np.ndarray, value: int, cleaning: ComponentFilter, voxel_ml: float) -> None:
  """Removes components of a structure; voxels that share a face, edge or corner are connected.

  Args:
    label: label map; modified in place.
    value: label value of the structure.
    cleaning: which components to keep.
    voxel_ml: volume of a voxel in ml.
  """
  box, components, count = _components(label, value)
  if not count:
    return
  sizes = np.bincount(components.ravel(), minlength=count + 1)
  keep = sizes * voxel_ml >= cleaning.minimum_ml
  if cleaning.largest:
    keep &= np.arange(count + 1) == 1 + sizes[1:].argmax()
  keep[0] = True
  label[box][~keep[components]] = 0


def drop_detached(label: np.ndarray, part: int, whole: int) -> None:
  """Removes components of a part (a tumour) that do not touch its whole (the liver).

  Args:
    label: label map; modified in place.
    part: label value of the part.
    whole: label value of the structure that contains it.
  """
  box, components, count = _components(label, part)
  if not count:
    return
  around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
  near = ndimage.binary_dilation(label[around] == whole, np.ones((3,) * label.ndim))
  inner = tuple(slice(s.start - a.start, s.stop - a.start)
                for s, a in zip(box, around, strict=True))
  keep = np.zeros(count + 1, bool)
  keep[components[near[inner]]] = True
  keep[0] = True
  label[box][~keep[components]] = 0


def main_box(label: np.ndarray, value: int, part: float = 0.1) -> tuple[slice, ...]:
  """Returns the bounding box of the main components of a structure.

  Args:
    label: label map.
    value: label value of the structure.
    part: components with at least this fraction of the largest one's voxels are included.

  Returns:
    One slice per axis; empty slices at 0 if the structure is absent.
  """
  box, components, count = _components(label, value)
  if not count:
    return (slice(0, 0),) * label.ndim
  sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
  chosen = [inner for inner, size in zip(ndimage.find_objects(components), sizes, strict=True)
            if size >= part * sizes.max()]
  return tuple(slice(outer.start + min(c[axis].start for c in chosen),
                     outer.start + max(c[axis].stop for c in chosen))
               for axis, outer in enumerate(box))


def _components(label: np.ndarray, value: int) -> tuple[tuple[slice, ...], np.ndarray | None, int]:
  """Returns a structure's bounding box, its components numbered from 1 in it, and their count."""
  mask = label == value
  axes = [np.flatnonzero(mask.any(tuple(a for a in range(label.ndim) if a != axis)))
          for axis in range(label.ndim)]
  if not len(axes[0]):
    return (), None, 0
  box = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in axes)
  components, count = ndimage.label(mask[box], np.ones((3,) * label.ndim))
  return box, components, count
