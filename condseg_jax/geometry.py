"""Grids in world space: affine, orientation, spacing, and the exact inverse of reorientation.

World coordinates are RAS+ millimetres, the convention of NIfTI and nibabel. An affine maps the
homogeneous index of a voxel *centre* to the world, so the outer faces of a volume lie at the
indices -0.5 and shape - 0.5.
"""

from dataclasses import dataclass
import itertools
import os
import warnings

from nibabel import orientations
from nibabel.affines import obliquity
import numpy as np

from condseg_jax.errors import InputError

CANONICAL = ("S", "P", "L")  # imshow draws its axial slices in radiological convention
MAX_CORNER_MM = 0.1  # maximal misalignment of an image and its label
QUIET_CORNER_MM = 1e-3  # misalignment due to float32 headers and rounded decimals: no warning
MAX_MM = 1e6  # of an origin or a spacing; further away, float32 headers resolve a tenth of a mm
MIN_UNIT_VOLUME = 1e-4  # volume spanned by the unit axes: 1 if orthogonal, 0 if singular


def check_affine(affine: np.ndarray, subject: str | os.PathLike = "affine") -> None:
  """Raises InputError for an affine that is not invertible or not finite.

  Args:
    affine: (n+1, n+1), array index -> world mm, n = 2 or 3 spatial axes.
    subject: the file to name in the error.

  Raises:
    InputError: wrong shape or last row, NaN, Inf or absurdly large, a zero column, linearly
      dependent columns.
  """
  cure = "correct the orientation in the header, or convert the original image again"
  affine = np.asarray(affine)
  if affine.shape not in ((3, 3), (4, 4)):
    raise InputError(subject, f"affine has the shape {affine.shape}, not (3, 3) or (4, 4)", cure)
  if not np.isfinite(affine).all():
    raise InputError(subject, "affine contains NaN or Inf", cure)
  largest = np.abs(affine).max()
  if largest > MAX_MM:
    raise InputError(subject, f"affine contains {largest:.3g} mm, beyond {MAX_MM:g}", cure)
  axes = affine[:-1, :-1]
  if np.any(affine[-1] != [0.0] * len(axes) + [1.0]):
    raise InputError(subject, f"the last row of the affine is {affine[-1].tolist()}", cure)
  lengths = np.linalg.norm(axes, axis=0)
  if np.any(lengths == 0.0):
    axis = int(np.argmin(lengths))
    raise InputError(subject, f"column {axis} of the affine is zero (spacing 0 mm)", cure)
  if abs(np.linalg.det(axes / lengths)) < MIN_UNIT_VOLUME:
    raise InputError(subject, "affine is singular: its axes are linearly dependent", cure)


@dataclass(frozen=True, eq=False)
class Geometry:
  """The grid of a volume: shape and affine, without voxel values.

  Attributes:
    shape: voxels along each of the n = 2 or 3 spatial axes, no channel axis.
    affine: (n+1, n+1) float64, read-only; array index -> RAS+ world mm (2-D: pixel units).
  """

  shape: tuple[int, ...]
  affine: np.ndarray

  def __post_init__(self) -> None:
    check_affine(self.affine)
    object.__setattr__(self, "affine", _frozen(self.affine))
    object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
    if len(self.shape) != self.ndim or min(self.shape) < 1:
      raise ValueError(f"shape {self.shape} does not match {self.ndim} spatial axes")

  @property
  def ndim(self) -> int:
    """Number of spatial axes."""
    return self.affine.shape[0] - 1

  @property
  def spacing(self) -> tuple[float, ...]:
    """Distance between neighbouring voxel centres along each array axis, in mm."""
    return tuple(np.linalg.norm(self.affine[:-1, :-1], axis=0).tolist())


@dataclass(frozen=True, eq=False)
class Volume:
  """An array with its affine.

  Attributes:
    array: spatial axes first, then optionally one channel axis.
    affine: (n+1, n+1) float64, read-only; array index -> RAS+ world mm. It determines the number
      of spatial axes: n = 2 or 3.
  """

  array: np.ndarray
  affine: np.ndarray

  def __post_init__(self) -> None:
    check_affine(self.affine)
    object.__setattr__(self, "affine", _frozen(self.affine))
    if self.array.ndim - self.ndim not in (0, 1):
      raise ValueError(f"array of shape {self.array.shape} with {self.ndim} spatial axes")

  @property
  def geometry(self) -> Geometry:
    """The grid of the spatial axes."""
    return Geometry(self.array.shape[: self.ndim], self.affine)

  @property
  def ndim(self) -> int:
    """Number of spatial axes, without the channel axis."""
    return self.affine.shape[0] - 1

  @property
  def spacing(self) -> tuple[float, ...]:
    """Distance between neighbouring voxel centres along each spatial axis, in mm."""
    return self.geometry.spacing


def axcodes(affine: np.ndarray) -> tuple[str, ...]:
  """Returns the world directions closest to the array axes, e.g. ('S', 'P', 'L'); () in 2-D."""
  check_affine(affine)
  return () if len(affine) == 3 else orientations.aff2axcodes(affine)


def to_canonical(volume: Volume) -> Volume:
  """Reorders a volume to the axes (D, H, W) = (towards S, towards P, towards L).

  Axes are permuted and flipped, never interpolated: an oblique volume keeps its own axes, each in
  the position of the closest world axis. The result is a view of the input where numpy can make
  one. 2-D volumes are returned unchanged.
  """
  if volume.ndim == 2:
    return volume
  change = orientations.ornt_transform(_orientation(volume.affine), _canonical_orientation())
  array = orientations.apply_orientation(volume.array, change)
  return Volume(array, _canonical_affine(volume.geometry))


def canonical_geometry(geometry: Geometry) -> Geometry:
  """Returns the grid of `to_canonical(volume)` for a volume on the native grid `geometry`."""
  if geometry.ndim == 2:
    return geometry
  change = orientations.ornt_transform(_orientation(geometry.affine), _canonical_orientation())
  order = np.argsort(change[:, 0])
  return Geometry(tuple(geometry.shape[axis] for axis in order), _canonical_affine(geometry))


def from_canonical(array: np.ndarray, geometry: Geometry) -> Volume:
  """Inverts `to_canonical`.

  Args:
    array: on the canonical grid of `geometry`: spatial axes (D, H, W), then optionally channels.
    geometry: the native grid.

  Returns:
    The volume in native axis order; its affine is bit-identical to that of `geometry`.

  Raises:
    ValueError: the array does not have the shape of the canonical grid.
  """
  array = np.asarray(array)
  expected = canonical_geometry(geometry).shape
  if array.shape[: geometry.ndim] != expected:
    raise ValueError(f"array of shape {array.shape}, but the canonical grid is {expected}")
  if geometry.ndim == 3:
    change = orientations.ornt_transform(_canonical_orientation(), _orientation(geometry.affine))
    array = orientations.apply_orientation(array, change)
  return Volume(array, geometry.affine)


def corner_distance(a: Geometry, b: Geometry) -> float:
  """Returns the largest distance in mm between points of the same index in two grids.

  The distance between two affine maps is convex, so its maximum is at a corner of the volume.

  Raises:
    ValueError: the two shapes differ.
  """
  if a.shape != b.shape:
    raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
  corners = itertools.product(*((-0.5, size - 0.5) for size in a.shape))
  homogeneous = np.array([(*corner, 1.0) for corner in corners])
  return float(np.linalg.norm(homogeneous @ (a.affine - b.affine).T, axis=1).max())


def match_grid(image_path: str | os.PathLike, image: Geometry, label_path: str | os.PathLike,
               label: Volume) -> Volume:
  """Maps a label to the grid of its image by permuting and flipping axes, without interpolation.

  NIfTI labels of DICOM images, for example, are often stored along other axes than the image. The
  result has the affine of the image: for oblique volumes near 45 degrees a difference in the last
  digit could otherwise give image and label different canonical axes.

  Args:
    image_path: for error messages.
    label_path: see `image_path`.
    image: grid of the image in file axis order.
    label: label map in file axis order.

  Returns:
    The label on the grid of the image.

  Raises:
    InputError: the shapes differ, or corners are more than 0.1 mm (or half a voxel, if smaller)
      apart. A smaller misalignment than that, but larger than rounding, is a warning.
  """
  cure = f"resample the label to the grid of {image_path}"
  reoriented = reorient_to(image, label)
  if image.shape != reoriented.geometry.shape:
    reason = f"has the shape {label.geometry.shape}, but the image has {image.shape}"
    raise InputError(label_path, reason, cure, kind="shape")
  distance = _distance(image, reoriented.geometry)
  if distance > tolerance(image):
    raise InputError(label_path, f"is up to {distance:.3g} mm away from the image", cure,
                     kind="affine")
  if distance > QUIET_CORNER_MM:
    warnings.warn(f"{label_path}: is {distance:.2g} mm away from {image_path}", stacklevel=2)
  return Volume(reoriented.array, image.affine)


def reorient_to(image: Geometry, label: Volume) -> Volume:
  """Permutes and flips the axes of a label to those of its image, unless they match already."""
  if _distance(image, label.geometry) <= tolerance(image) or not image.ndim == label.ndim == 3:
    return label
  change = orientations.ornt_transform(_orientation(label.affine), _orientation(image.affine))
  return Volume(orientations.apply_orientation(label.array, change),
                label.affine @ orientations.inv_ornt_aff(change, label.geometry.shape))


def voxel_ml(affine: np.ndarray) -> float:
  """Returns the volume of a voxel in ml, shear included; in 2-D its area / 1000."""
  return float(abs(np.linalg.det(np.asarray(affine)[:-1, :-1]))) / 1000


def shear(affine: np.ndarray) -> float:
  """Returns the largest deviation, in degrees, of two axes of an affine from a right angle."""
  unit = affine[:-1, :-1] / np.linalg.norm(affine[:-1, :-1], axis=0)
  cosines = np.abs(unit.T @ unit - np.eye(len(unit))).max()
  return float(np.degrees(np.arcsin(min(1.0, cosines))))


def oblique_degrees(affine: np.ndarray) -> float:
  """Returns the largest angle, in degrees, between an array axis and its closest world axis."""
  return float(np.degrees(obliquity(affine)).max()) if len(affine) == 4 else 0.0


def tolerance(image: Geometry) -> float:
  """Returns the maximal distance, in mm, of the corners of a label from those of its image."""
  return min(MAX_CORNER_MM, 0.5 * min(image.spacing))


def _distance(a: Geometry, b: Geometry) -> float:
  return corner_distance(a, b) if a.shape == b.shape else float("inf")


def _frozen(affine: np.ndarray) -> np.ndarray:
  affine = np.array(affine, dtype=np.float64)
  affine.setflags(write=False)
  return affine


def _orientation(affine: np.ndarray) -> np.ndarray:
  return orientations.io_orientation(affine)


def _canonical_orientation() -> np.ndarray:
  return orientations.axcodes2ornt(CANONICAL)


def _canonical_affine(geometry: Geometry) -> np.ndarray:
  change = orientations.ornt_transform(_orientation(geometry.affine), _canonical_orientation())
  return geometry.affine @ orientations.inv_ornt_aff(change, geometry.shape)
