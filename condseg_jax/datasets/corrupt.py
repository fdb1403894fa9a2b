"""Imperfect annotations for robustness studies: a mask damaged at a given rate."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np
from scipy import ndimage

from condseg_jax import resample
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.datasets.synthetic.random_field import smooth_rows
from condseg_jax.errors import InputError

KINDS = ("parts", "false_positives", "false_negatives", "boundary")
PIECE = 1 << 19  # voxels worked on at once
DISTANCES = 1 << 23  # voxels of the grid on which distances from a surface are known, at most
BINS = 1 << 12


@dataclasses.dataclass(frozen=True)
class Corruption:
  """One kind of damage.

  Attributes:
    kind: `parts` cuts a piece off by a plane; `false_negatives` punches balls out of the structure;
      `false_positives` adds balls elsewhere; `boundary` moves the surface in and out by a smooth
      random distance.
    rate: voxels changed, as a part of the positive ones; met to the voxel where there is room.
    seed: of the randomness, which also depends on the kind and on the name of the mask.
  """

  kind: str
  rate: float
  seed: int = 0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise InputError(f"damage {self.kind!r}", "is not known", f"one of {', '.join(KINDS)}",
                       usage=True)
    if not 0 <= self.rate <= 1:
      raise InputError("--rate", f"{self.rate:g}", "a part between 0 and 1", usage=True)

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str, *,
            in_place: bool = False) -> np.ndarray:
    """The damaged mask; unlabelled voxels stay so, and so does a mask without a positive voxel.

    Args:
      mask: three-valued, uint8 [D, H, W] or [H, W].
      spacing: mm along each axis.
      name: CASE/CLASS; masks of other names are damaged otherwise.
      in_place: change `mask` itself; no other array of its size is needed then.
    """
    mask = mask if in_place else mask.copy()
    count = round(self.rate * len(_Voxels(mask, POSITIVE)))
    if count:
      key = hashlib.sha256(f"{self.seed}/{self.kind}/{name}".encode()).digest()
      rng = np.random.default_rng(int.from_bytes(key[:8]))
      _DAMAGES[self.kind](mask, np.asarray(spacing, np.float64), count, rng)
    return mask


class _Voxels:
  """The voxels of one value in C order, counted by plane: no list of them is kept."""

  def __init__(self, mask: np.ndarray, value: int):
    self._mask, self._value = mask, value
    self._counts = np.zeros(len(mask), np.int64)
    self.count(slice(0, len(mask)))

  def __len__(self) -> int:
    return int(self._counts.sum())

  def __getitem__(self, rank: int) -> np.ndarray:
    """The index of one of them."""
    ends = np.cumsum(self._counts)
    plane = int(np.searchsorted(ends, rank, side="right"))
    inside = np.flatnonzero(self._mask[plane] == self._value)[rank - ends[plane]]
    return np.array([plane, *np.unravel_index(inside, self._mask.shape[1:])])

  def count(self, planes: slice) -> None:
    """Has to follow a change in these planes."""
    for plane in range(planes.start, planes.stop):
      self._counts[plane] = np.count_nonzero(self._mask[plane] == self._value)


def _cut(mask, spacing, count, rng) -> None:
  """Turns the `count` positives negative that lie farthest along a random direction."""
  part = mask[_box(mask)]
  slopes = rng.normal(size=mask.ndim) * spacing
  heights = [np.arange(n) * slope for n, slope in zip(part.shape, slopes, strict=True)]
  top = sum(h.max() for h in heights)

  def below_top(rows):
    return np.where(part[rows] == POSITIVE, top - _summed(heights, rows), np.inf)
  _flip(part, below_top, top - sum(h.min() for h in heights), count)


def _punch(mask, spacing, count, rng) -> None:
  """Balls around random positives turn negative."""
  positives = _Voxels(mask, POSITIVE)
  radius = _radius(len(positives), spacing)
  while count:
    centre = positives[rng.integers(len(positives))]
    box, changed = _fill(mask, centre, radius * rng.uniform(0.15, 0.5), spacing, POSITIVE, count)
    positives.count(box[0])
    count -= changed


def _add(mask, spacing, count, rng) -> None:
  """Balls around random negatives turn positive, near the structure and far from it."""
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
    ball, changed = _fill(mask, centre, radius * rng.uniform(0.2, 0.6), spacing, NEGATIVE, room)
    free.count(ball[0])
    room -= changed


def _fill(mask, centre, radius, spacing, old: int, most: int) -> tuple[tuple[slice, ...], int]:
  """Flips the voxels of one value in a ball, the inner ones first; its box, and how many."""
  radius = max(radius, 1e-9)
  reach = np.maximum(1, np.ceil(radius / spacing)).astype(int)
  box = tuple(slice(max(0, c - r), min(n, c + r + 1))
              for c, r, n in zip(centre, reach, mask.shape, strict=True))
  squares = [((np.arange(s.start, s.stop) - c) * d) ** 2
             for s, c, d in zip(box, centre, spacing, strict=True)]
  part = mask[box]

  def distance(rows):
    away = np.sqrt(_summed(squares, rows))
    return np.where((part[rows] == old) & (away <= radius), away, np.inf)
  return box, _flip(part, distance, radius, most)


def _jitter(mask, spacing, count, rng) -> None:
  """Moves the surface by an amplitude times a smooth random field, in and out.

  A voxel flips at the amplitude at which its distance from the surface is reached: those with the
  smallest do. In a large box the distances are those of a coarser grid.
  """
  radius = _radius(len(_Voxels(mask, POSITIVE)), spacing)
  margin = np.ceil(radius / spacing).astype(int) + 1
  part = mask[tuple(slice(max(0, s.start - m), min(n, s.stop + m))
                    for s, m, n in zip(_box(mask), margin, mask.shape, strict=True))]
  depth = _depth(part, spacing, radius)
  field = smooth_rows(rng, part.shape, np.maximum(1.0, 0.4 * radius / spacing))
  least = np.float32(0.5 * spacing.min())

  def amplitude(rows):
    block, push = part[rows], field(rows)
    source = resample.source_rows(depth.shape, part.shape, rows)
    away = resample.resampled_rows(depth[source], part.shape, 1, rows, depth.shape)
    away = np.maximum(np.where(block == POSITIVE, away, -away), least)
    push = np.where(block == POSITIVE, -push, push)  # towards the other side
    may = ((block == POSITIVE) | (block == NEGATIVE)) & (push * (2 * radius) > away)
    return np.divide(away, push, out=np.full(away.shape, np.inf, np.float32), where=may)
  _flip(part, amplitude, 2 * radius, count)


def _depth(part: np.ndarray, spacing: np.ndarray, radius: float) -> np.ndarray:
  """Distance from the surface, positive inside, on a grid of at most about `DISTANCES` voxels."""
  factor = np.ones(part.ndim)
  while np.prod(part.shape / factor) > DISTANCES:
    factor[np.argmin(np.where(factor < part.shape, spacing * factor, np.inf))] += 1
  shape = tuple(int(n) for n in np.ceil(part.shape / factor))
  spacing = spacing * part.shape / shape
  inside = np.empty(shape, bool)
  for rows in _pieces(shape):
    source = part[resample.source_rows(part.shape, shape, rows)] == POSITIVE
    inside[rows] = resample.resampled_rows(source, shape, 0, rows, part.shape)
  if inside.all():
    return np.full(shape, radius, np.float32)
  depth = distance_to(~inside, spacing)
  depth -= distance_to(inside, spacing)
  # The surface lies half a voxel outside of the last centre.
  depth -= np.sign(depth) * np.float32(0.5 * spacing.min())
  return depth


def _flip(part: np.ndarray, key: Callable[[slice], np.ndarray], span: float, count: int) -> int:
  """Flips the `count` voxels with the smallest keys: positive ones turn negative, and vice versa.

  Counts the keys in bins first, so that nothing of the size of the part is in memory.

  Args:
    part: of a mask; changed in place.
    key: rows → the keys of their voxels, from 0 to about `span`; inf for those that must stay.
    span: what the bins are laid over.
    count: of voxels to flip.

  Returns:
    How many were flipped: fewer where too many must stay.
  """
  scale = BINS / max(span, 1e-9)

  def keys_and_bins(rows):
    keys = key(rows)
    bins = np.where(np.isinf(keys), BINS, np.clip(keys * scale, 0, BINS - 1)).astype(np.int32)
    return keys, bins

  total = np.zeros(BINS + 1, np.int64)
  for rows in _pieces(part.shape):
    total += np.bincount(keys_and_bins(rows)[1].ravel(), minlength=BINS + 1)
  ends = np.cumsum(total[:BINS])
  last = int(np.searchsorted(ends, count))  # the bin in which the count is reached
  index, keys = [], []
  for rows in _pieces(part.shape):
    some, bins = keys_and_bins(rows)
    block = part[rows]
    block[bins < last] = NEGATIVE + POSITIVE - block[bins < last]
    if last < BINS:
      found = np.argwhere(bins == last)
      keys.append(some[tuple(found.T)])
      index.append(found + [rows.start, *[0] * (part.ndim - 1)])
  if last == BINS:
    return int(ends[-1])
  order = np.argsort(np.concatenate(keys), kind="stable")[:count - (ends[last] - total[last])]
  rest = tuple(np.concatenate(index)[order].T)
  part[rest] = NEGATIVE + POSITIVE - part[rest]
  return count


def _summed(terms: Sequence[np.ndarray], rows: slice) -> np.ndarray:
  """The sum of one term for each axis, for some rows."""
  return sum(np.meshgrid(terms[0][rows], *terms[1:], indexing="ij", sparse=True))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
  """The smallest box around the positive voxels."""
  planes, shown = np.zeros(len(mask), bool), np.zeros(mask.shape[1:], bool)
  for number, plane in enumerate(mask):
    positive = plane == POSITIVE
    planes[number] = positive.any()
    shown |= positive
  return sum((ndimage.find_objects(seen.astype(np.uint8))[0] for seen in (planes, shown)), ())


def _pieces(shape: Sequence[int]) -> Iterator[slice]:
  step = max(1, PIECE // int(np.prod(shape[1:])))
  for start in range(0, shape[0], step):
    yield slice(start, min(start + step, shape[0]))


def _radius(voxels: int, spacing: Sequence[float]) -> float:
  """Of the ball (disc) of that volume (area), in mm."""
  size = voxels * float(np.prod(spacing))
  return (size * 3 / (4 * np.pi)) ** (1 / 3) if len(spacing) == 3 else (size / np.pi) ** 0.5


_DAMAGES = {"parts": _cut, "false_positives": _add, "false_negatives": _punch, "boundary": _jitter}


# --- Distances from regions, in little memory.
def distance_to(region: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
  """The exact distance of every voxel from the nearest one of a region, between centres.

  Takes a fifth of the memory of SciPy's, which remembers which voxel is the nearest.

  Args:
    region: bool, 2-D or 3-D.
    spacing: mm along each axis.

  Returns:
    float32 in mm, 0 inside of the region; some huge number where the region is empty.
  """
  import SimpleITK as sitk

  image = sitk.GetImageFromArray(region.astype(np.uint8))
  image.SetSpacing([float(s) for s in reversed(spacing)])
  signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False,
                                        useImageSpacing=True)
  return np.maximum(sitk.GetArrayViewFromImage(signed), np.float32(0))
