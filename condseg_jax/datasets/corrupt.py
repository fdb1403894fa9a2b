"""Label corruption for robustness studies: masks with errors at a given rate."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
from typing import ClassVar

import numpy as np
from scipy import ndimage

from condseg_jax import resample
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.datasets.synthetic.random_field import smooth_rows
from condseg_jax.errors import InputError

KINDS = ("parts", "false_positives", "false_negatives", "boundary")
PIECE = 1 << 19  # voxels processed at a time
DISTANCES = 1 << 23  # maximal number of voxels of the grid for distances from a surface
BINS = 1 << 12


@dataclasses.dataclass(frozen=True)
class Corruption:
  """One kind of label error.

  Attributes:
    kind: `parts` removes the structure beyond a random plane; `false_negatives` removes balls from
      it; `false_positives` adds balls elsewhere; `boundary` moves the surface in and out by a
      smooth random distance.
    rate: number of changed voxels as a fraction of the positive ones; exact to the voxel if there
      are enough voxels to change.
    seed: of the random numbers, which also depend on the kind and on the name of the mask.
  """

  kind: str
  rate: float
  seed: int = 0

  record_name: ClassVar[str] = "Damage"  # part of the store format

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise InputError("kind", f"unknown corruption {self.kind!r}",
                       f"choose from: {', '.join(KINDS)}", usage=True)
    if not 0 <= self.rate <= 1:
      raise InputError("rate", f"must be in [0, 1], not {self.rate:g}",
                       "give the fraction of voxels to change", usage=True)

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str, *,
            in_place: bool = False) -> np.ndarray:
    """Returns the corrupted mask; unlabelled voxels and masks without positives are unchanged.

    Args:
      mask: three-valued, uint8 [D, H, W] or [H, W].
      spacing: mm along each axis.
      name: CASE/CLASS; it determines the random numbers, together with kind and seed.
      in_place: overwrite `mask`, which avoids another array of its size.
    """
    mask = mask if in_place else mask.copy()
    count = round(self.rate * len(_Voxels(mask, POSITIVE)))
    if count:
      key = hashlib.sha256(f"{self.seed}/{self.kind}/{name}".encode()).digest()
      rng = np.random.default_rng(int.from_bytes(key[:8]))
      _CORRUPTIONS[self.kind](mask, np.asarray(spacing, np.float64), count, rng)
    return mask


class _Voxels:
  """The voxels of one value in C order, indexed by counts per plane instead of a list."""

  def __init__(self, mask: np.ndarray, value: int) -> None:
    self._mask, self._value = mask, value
    self._counts = np.zeros(len(mask), np.int64)
    self.count(slice(0, len(mask)))

  def __len__(self) -> int:
    return int(self._counts.sum())

  def __getitem__(self, rank: int) -> np.ndarray:
    """Returns the index of the voxel of a given rank."""
    ends = np.cumsum(self._counts)
    plane = int(np.searchsorted(ends, rank, side="right"))
    inside = np.flatnonzero(self._mask[plane] == self._value)[rank - ends[plane]]
    return np.array([plane, *np.unravel_index(inside, self._mask.shape[1:])])

  def count(self, planes: slice) -> None:
    """Counts again, after the mask changed in these planes."""
    for plane in range(planes.start, planes.stop):
      self._counts[plane] = np.count_nonzero(self._mask[plane] == self._value)


def _remove_part(mask: np.ndarray, spacing: np.ndarray, count: int,
                 rng: np.random.Generator) -> None:
  """Makes those `count` positives negative that are farthest along a random direction."""
  crop = mask[_box(mask)]
  slopes = rng.normal(size=mask.ndim) * spacing
  heights = [np.arange(n) * slope for n, slope in zip(crop.shape, slopes, strict=True)]
  top = sum(h.max() for h in heights)

  def below_top(rows: slice) -> np.ndarray:
    return np.where(crop[rows] == POSITIVE, top - _outer_sum(heights, rows), np.inf)
  _flip(crop, below_top, top - sum(h.min() for h in heights), count)


def _remove_balls(mask: np.ndarray, spacing: np.ndarray, count: int,
                  rng: np.random.Generator) -> None:
  """Makes balls around random positives negative."""
  positives = _Voxels(mask, POSITIVE)
  radius = _radius(len(positives), spacing)
  while count:
    centre = positives[rng.integers(len(positives))]
    box, changed = _flip_ball(mask, centre, radius * rng.uniform(0.15, 0.5), spacing, POSITIVE,
                              count)
    positives.count(box[0])
    count -= changed


def _add_balls(mask: np.ndarray, spacing: np.ndarray, count: int,
               rng: np.random.Generator) -> None:
  """Makes balls around random negatives positive, close to the structure and far from it."""
  radius = _radius(len(_Voxels(mask, POSITIVE)), spacing)
  box, free = _box(mask), _Voxels(mask, NEGATIVE)
  room = min(count, len(free))
  while room:
    near = rng.random() < 0.5
    low = [max(0, s.start - (s.stop - s.start) // 2) if near else 0 for s in box]
    high = [min(n, s.stop + (s.stop - s.start) // 2) if near else n
            for s, n in zip(box, mask.shape, strict=True)]
    centre = rng.integers(low, high)
    if mask[tuple(centre)] != NEGATIVE and len(free) > mask.size // 50:
      continue
    if mask[tuple(centre)] != NEGATIVE:
      centre = free[rng.integers(len(free))]
    ball, changed = _flip_ball(mask, centre, radius * rng.uniform(0.2, 0.6), spacing, NEGATIVE,
                               room)
    free.count(ball[0])
    room -= changed


def _flip_ball(mask: np.ndarray, centre: np.ndarray, radius: float, spacing: np.ndarray, old: int,
               most: int) -> tuple[tuple[slice, ...], int]:
  """Flips up to `most` voxels of the value `old` in a ball, inner ones first.

  Returns:
    The bounding box of the ball, and the number of flipped voxels.
  """
  radius = max(radius, 1e-9)
  reach = np.maximum(1, np.ceil(radius / spacing)).astype(int)
  box = tuple(slice(max(0, c - r), min(n, c + r + 1))
              for c, r, n in zip(centre, reach, mask.shape, strict=True))
  squares = [((np.arange(s.start, s.stop) - c) * d) ** 2
             for s, c, d in zip(box, centre, spacing, strict=True)]
  crop = mask[box]

  def distance(rows: slice) -> np.ndarray:
    away = np.sqrt(_outer_sum(squares, rows))
    return np.where((crop[rows] == old) & (away <= radius), away, np.inf)
  return box, _flip(crop, distance, radius, most)


def _move_boundary(mask: np.ndarray, spacing: np.ndarray, count: int,
                   rng: np.random.Generator) -> None:
  """Moves the surface by an amplitude times a smooth random field, in and out.

  A voxel flips at the amplitude at which the displacement reaches its distance from the surface;
  the `count` voxels with the smallest amplitudes are flipped. In a large box the distances are
  interpolated from a coarser grid.
  """
  radius = _radius(len(_Voxels(mask, POSITIVE)), spacing)
  margin = np.ceil(radius / spacing).astype(int) + 1
  crop = mask[tuple(slice(max(0, s.start - m), min(n, s.stop + m))
                    for s, m, n in zip(_box(mask), margin, mask.shape, strict=True))]
  depth = _depth(crop, spacing, radius)
  field = smooth_rows(rng, crop.shape, np.maximum(1.0, 0.4 * radius / spacing))
  least = np.float32(0.5 * spacing.min())

  def amplitude(rows: slice) -> np.ndarray:
    block, push = crop[rows], field(rows)
    source = resample.source_rows(depth.shape, crop.shape, rows)
    away = resample.resampled_rows(depth[source], crop.shape, 1, rows, depth.shape)
    away = np.maximum(np.where(block == POSITIVE, away, -away), least)
    push = np.where(block == POSITIVE, -push, push)  # towards the other side of the surface
    may = ((block == POSITIVE) | (block == NEGATIVE)) & (push * (2 * radius) > away)
    return np.divide(away, push, out=np.full(away.shape, np.inf, np.float32), where=may)
  _flip(crop, amplitude, 2 * radius, count)


def _depth(crop: np.ndarray, spacing: np.ndarray, radius: float) -> np.ndarray:
  """Returns the depth (negative outside), on a grid of at most about `DISTANCES` voxels."""
  factor = np.ones(crop.ndim)
  while np.prod(crop.shape / factor) > DISTANCES:
    factor[np.argmin(np.where(factor < crop.shape, spacing * factor, np.inf))] += 1
  shape = tuple(int(n) for n in np.ceil(crop.shape / factor))
  spacing = spacing * crop.shape / shape
  inside = np.empty(shape, bool)
  for rows in _pieces(shape):
    source = crop[resample.source_rows(crop.shape, shape, rows)] == POSITIVE
    inside[rows] = resample.resampled_rows(source, shape, 0, rows, crop.shape)
  if inside.all():
    return np.full(shape, radius, np.float32)
  depth = distance_to(~inside, spacing)
  depth -= distance_to(inside, spacing)
  # The surface is half a voxel outside of the last voxel centre.
  depth -= np.sign(depth) * np.float32(0.5 * spacing.min())
  return depth


def _flip(crop: np.ndarray, key: Callable[[slice], np.ndarray], span: float, count: int) -> int:
  """Flips the `count` voxels with the smallest keys, positive to negative and vice versa.

  Finds the threshold from a histogram of the keys, so that no array of the size of `crop` is
  needed.

  Args:
    crop: part of a mask; changed in place.
    key: rows → the keys of their voxels, from 0 to about `span`; inf for voxels not to be flipped.
    span: range of the histogram.
    count: number of voxels to flip.

  Returns:
    The number of flipped voxels, which is smaller than `count` if there are too few finite keys.
  """
  scale = BINS / max(span, 1e-9)

  def keys_and_bins(rows: slice) -> tuple[np.ndarray, np.ndarray]:
    keys = key(rows)
    bins = np.where(np.isinf(keys), BINS, np.clip(keys * scale, 0, BINS - 1)).astype(np.int32)
    return keys, bins

  total = np.zeros(BINS + 1, np.int64)
  for rows in _pieces(crop.shape):
    total += np.bincount(keys_and_bins(rows)[1].ravel(), minlength=BINS + 1)
  ends = np.cumsum(total[:BINS])
  last = int(np.searchsorted(ends, count))  # the bin in which the count is reached
  last_index, last_keys = [], []
  for rows in _pieces(crop.shape):
    keys, bins = keys_and_bins(rows)
    block = crop[rows]
    block[bins < last] = NEGATIVE + POSITIVE - block[bins < last]
    if last < BINS:
      index = np.argwhere(bins == last)
      last_keys.append(keys[tuple(index.T)])
      last_index.append(index + [rows.start, *[0] * (crop.ndim - 1)])
  if last == BINS:
    return int(ends[-1])
  order = np.argsort(np.concatenate(last_keys), kind="stable")[:count - (ends[last] - total[last])]
  rest = tuple(np.concatenate(last_index)[order].T)
  crop[rest] = NEGATIVE + POSITIVE - crop[rest]
  return count


def _outer_sum(terms: Sequence[np.ndarray], rows: slice) -> np.ndarray:
  """Returns the outer sum of one vector per axis, for some rows."""
  return sum(np.meshgrid(terms[0][rows], *terms[1:], indexing="ij", sparse=True))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
  """Returns the bounding box of the positive voxels."""
  planes, projection = np.zeros(len(mask), bool), np.zeros(mask.shape[1:], bool)
  for number, plane in enumerate(mask):
    positive = plane == POSITIVE
    planes[number] = positive.any()
    projection |= positive
  return sum((ndimage.find_objects(shadow.astype(np.uint8))[0] for shadow in (planes, projection)),
             ())


def _pieces(shape: Sequence[int]) -> Iterator[slice]:
  step = max(1, PIECE // int(np.prod(shape[1:])))
  for start in range(0, shape[0], step):
    yield slice(start, min(start + step, shape[0]))


def _radius(voxels: int, spacing: Sequence[float]) -> float:
  """Returns the radius in mm of a ball (in 2-D a disc) of this number of voxels."""
  size = voxels * float(np.prod(spacing))
  return (size * 3 / (4 * np.pi)) ** (1 / 3) if len(spacing) == 3 else (size / np.pi) ** 0.5


_CORRUPTIONS = {"parts": _remove_part, "false_positives": _add_balls,
                "false_negatives": _remove_balls, "boundary": _move_boundary}


def distance_to(region: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
  """Returns the exact distance of every voxel centre to the closest voxel centre of a region.

  Needs a fifth of the memory of SciPy's transform, which also stores the closest voxel.

  Args:
    region: bool, 2-D or 3-D.
    spacing: mm along each axis.

  Returns:
    float32 in mm, 0 inside of the region; a huge number everywhere if the region is empty.
  """
  import SimpleITK as sitk

  image = sitk.GetImageFromArray(region.astype(np.uint8))
  image.SetSpacing([float(s) for s in reversed(spacing)])
  signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False,
                                        useImageSpacing=True)
  return np.maximum(sitk.GetArrayViewFromImage(signed), np.float32(0))
