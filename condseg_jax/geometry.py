"""Where an array lies in the world: affine, orientation, spacing, and the exact way back.

World coordinates are RAS+ millimetres, the convention of NIfTI and nibabel. An affine maps the
homogeneous index of a voxel *centre* to the world, so the outer faces of a volume lie at the
indices -0.5 and shape - 0.5.
"""

from dataclasses import dataclass
import itertools
import warnings

from nibabel import orientations
from nibabel.affines import obliquity
import numpy as np

from condseg_jax.errors import InputError

CANONICAL = ("S", "P", "L")  # axial slices which imshow draws the radiological way up
MAX_CORNER_MM = 0.1  # an image and its label may disagree by this much
QUIET_CORNER_MM = 1e-3  # what float32 headers and rounded decimals cost; not worth a word
MIN_UNIT_VOLUME = 1e-4  # volume spanned by the unit axes: 1 if orthogonal, 0 if singular


def check_affine(affine: np.ndarray, subject="affine") -> None:
  """Raises InputError, about `subject`, for an affine that places no volume in the world.

  Args:
    affine: (n+1, n+1), array index -> world mm, n = 2 or 3 spatial axes.
    subject: the file to name in the error.

  Raises:
    InputError: wrong shape or last row, NaN or Inf, a zero column, linearly dependent columns.
  """
  cure = "repair the orientation in the header, or convert the original again"
  affine = np.asarray(affine)
  if affine.shape not in ((3, 3), (4, 4)):
    raise InputError(subject, f"affine of shape {affine.shape} instead of (3, 3) or (4, 4)", cure)
  if not np.isfinite(affine).all():
    raise InputError(subject, "affine holds NaN or Inf", cure)
  axes = affine[:-1, :-1]
  if np.any(affine[-1] != [0.0] * len(axes) + [1.0]):
    raise InputError(subject, f"the last row of the affine is {affine[-1].tolist()}", cure)
  lengths = np.linalg.norm(axes, axis=0)
  if np.any(lengths == 0.0):
    axis = int(np.argmin(lengths))
    raise InputError(subject, f"column {axis} of the affine is zero (a spacing of 0 mm)", cure)
  if abs(np.linalg.det(axes / lengths)) < MIN_UNIT_VOLUME:
    raise InputError(subject, "affine is singular: its axes do not span the space", cure)


@dataclass(frozen=True, eq=False)
class Geometry:
  """The grid of a volume, without its voxels.

  Attributes:
    shape: voxels along each of the n = 2 or 3 spatial axes, no channel axis.
    affine: (n+1, n+1) float64, read-only; array index -> RAS+ world mm (2-D: pixel units).
  """

  shape: tuple[int, ...]
  affine: np.ndarray

  def __post_init__(self):
    check_affine(self.affine)
    object.__setattr__(self, "affine", _frozen(self.affine))
    object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
    if len(self.shape) != self.ndim or min(self.shape) < 1:
      raise ValueError(f"shape {self.shape} does not fit {self.ndim} spatial axes")

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
  """An array and its place in the world.

  Attributes:
    array: spatial axes first, then one channel axis if any.
    affine: (n+1, n+1) float64, read-only; array index -> RAS+ world mm. It fixes the number of
      spatial axes: n = 2 or 3.
  """

  array: np.ndarray
  affine: np.ndarray

  def __post_init__(self):
    check_affine(self.affine)
    object.__setattr__(self, "affine", _frozen(self.affine))
    if self.array.ndim - self.ndim not in (0, 1):
      raise ValueError(f"array of shape {self.array.shape} with {self.ndim} spatial axes")

  @property
  def geometry(self) -> Geometry:
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
  """World directions nearest to the array axes, e.g. ('S', 'P', 'L'); () for 2-D images."""
  check_affine(affine)
  return () if len(affine) == 3 else orientations.aff2axcodes(affine)


def to_canonical(volume: Volume) -> Volume:
  """The same voxels in the axis order (D, H, W) = (towards S, towards P, towards L).

  Axes are permuted and flipped, never interpolated: an oblique volume keeps its own axes, each in
  the place of the world axis nearest to it. The result is a view of the input where numpy can
  make one. 2-D volumes come back as they are.
  """
  if volume.ndim == 2:
    return volume
  change = orientations.ornt_transform(_orientation(volume.affine), _canonical_orientation())
  array = orientations.apply_orientation(volume.array, change)
  return Volume(array, _canonical_affine(volume.geometry))


def canonical_geometry(geometry: Geometry) -> Geometry:
  """The grid on which `to_canonical` puts a volume of the native `geometry`."""
  if geometry.ndim == 2:
    return geometry
  change = orientations.ornt_transform(_orientation(geometry.affine), _canonical_orientation())
  order = np.argsort(change[:, 0])
  return Geometry(tuple(geometry.shape[axis] for axis in order), _canonical_affine(geometry))


def from_canonical(array: np.ndarray, geometry: Geometry) -> Volume:
  """The inverse of `to_canonical`.

  Args:
    array: on the canonical grid of `geometry`: spatial axes (D, H, W), then channels if any.
    geometry: the native grid to go back to.

  Returns:
    The volume in native axis order; its affine is that of `geometry`, bit for bit.

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
  """The farthest that any point of grid `a` lies from the same index in grid `b`, in mm.

  The distance between two affine maps is convex, so its maximum lies on a corner of the volume.

  Raises:
    ValueError: the two shapes differ.
  """
  if a.shape != b.shape:
    raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
  corners = itertools.product(*((-0.5, size - 0.5) for size in a.shape))
  homogeneous = np.array([(*corner, 1.0) for corner in corners])
  return float(np.linalg.norm(homogeneous @ (a.affine - b.affine).T, axis=1).max())


def match_grid(image_path, image: Geometry, label_path, label: Volume) -> Volume:
  """Puts a label on the grid of its image, voxel by voxel, or says why they do not belong together.

  A label stored along other axes, as NIfTI labels of DICOM images often are, is permuted and
  flipped by geometry; nothing is interpolated. The affine is taken over from the image, which
  matters for oblique volumes near 45 degrees: a difference in the last digit could otherwise send
  image and label to different canonical axes.

  Args:
    image_path, label_path: named in the error.
    image: grid of the image in file axis order.
    label: as read, in file axis order.

  Returns:
    The label on the grid of the image.

  Raises:
    InputError: other shape, or corners more than 0.1 mm (half a voxel, if that is less) apart.
      A smaller difference that rounding does not explain is only warned of.
  """
  cure = f"resample the label onto the grid of {image_path}"
  turned = turn_to(image, label)
  if image.shape != turned.geometry.shape:
    reason = f"shape {label.geometry.shape}, but the image has {image.shape}"
    raise InputError(label_path, reason, cure, kind="shape")
  distance = _apart(image, turned.geometry)
  if distance > tolerance(image):
    raise InputError(label_path, f"lies up to {distance:.3g} mm away from the image", cure,
                     kind="affine")
  if distance > QUIET_CORNER_MM:
    warnings.warn(f"{label_path}: lies {distance:.2g} mm away from {image_path}", stacklevel=2)
  return Volume(turned.array, image.affine)


def turn_to(image: Geometry, label: Volume) -> Volume:
  """A label along the axes of its image, unless it fits as it is."""
  if _apart(image, label.geometry) <= tolerance(image) or not image.ndim == label.ndim == 3:
    return label
  change = orientations.ornt_transform(_orientation(label.affine), _orientation(image.affine))
  return Volume(orientations.apply_orientation(label.array, change),
                label.affine @ orientations.inv_ornt_aff(change, label.geometry.shape))


def voxel_ml(affine: np.ndarray) -> float:
  """Volume of a voxel in ml, shear counted; in 2-D a thousandth of its area."""
  return float(abs(np.linalg.det(np.asarray(affine)[:-1, :-1]))) / 1000


def shear(affine: np.ndarray) -> float:
  """The largest angle in degrees by which two axes of an affine miss being perpendicular."""
  unit = affine[:-1, :-1] / np.linalg.norm(affine[:-1, :-1], axis=0)
  cosines = np.abs(unit.T @ unit - np.eye(len(unit))).max()
  return float(np.degrees(np.arcsin(min(1.0, cosines))))


def oblique_degrees(affine: np.ndarray) -> float:
  """The largest angle between an axis of a volume and the axis of the world nearest to it."""
  return float(np.degrees(obliquity(affine)).max()) if len(affine) == 4 else 0.0


def tolerance(image: Geometry) -> float:
  """How far a label's corners may lie from the image's, in mm."""
  return min(MAX_CORNER_MM, 0.5 * min(image.spacing))


def _apart(a: Geometry, b: Geometry) -> float:
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
