"""Imperfect annotations for robustness studies: a mask damaged at a given rate."""

from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np
from scipy import ndimage

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.data.prepare.random_field import smooth_field
from condseg_jax.errors import InputError

KINDS = ("parts", "false_positives", "false_negatives", "boundary")
BISECTIONS = 20


@dataclasses.dataclass(frozen=True)
class Damage:
  """One kind of damage.

  Attributes:
    kind: `parts` cuts a piece off by a plane; `false_negatives` punches balls out of the structure;
      `false_positives` adds balls elsewhere; `boundary` moves the surface in and out by a smooth
      random distance.
    rate: voxels changed, as a part of the positive ones. `boundary` comes near it as far as moving
      the surface can; the others meet it to the voxel where there is room.
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

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str) -> np.ndarray:
    """The damaged mask; unlabelled voxels stay so, and so does a mask without a positive voxel.

    Args:
      mask: three-valued, uint8 [D, H, W] or [H, W].
      spacing: mm along each axis.
      name: CASE/CLASS; masks of other names are damaged otherwise.
    """
    mask = mask.copy()
    count = round(self.rate * int(np.count_nonzero(mask == POSITIVE)))
    if count:
      key = hashlib.sha256(f"{self.seed}/{self.kind}/{name}".encode()).digest()
      rng = np.random.default_rng(int.from_bytes(key[:8]))
      _DAMAGES[self.kind](mask, np.asarray(spacing, np.float64), count, rng)
    return mask


def _cut(mask, spacing, count, rng) -> None:
  """Turns the `count` positives negative that lie farthest along a random direction."""
  index = np.argwhere(mask == POSITIVE)
  direction = rng.normal(size=mask.ndim)
  height = (index * spacing) @ direction
  index = index[np.argsort(height, kind="stable")[len(index) - count:]]
  mask[tuple(index.T)] = NEGATIVE


def _punch(mask, spacing, count, rng) -> None:
  """Balls around random positives turn negative."""
  index = np.argwhere(mask == POSITIVE)
  radius = _radius(len(index), spacing)
  while count:
    index = index[mask[tuple(index.T)] == POSITIVE]
    centre = index[rng.integers(len(index))]
    count -= _fill(mask, centre, radius * rng.uniform(0.15, 0.5), spacing, POSITIVE, NEGATIVE,
                   count)


def _add(mask, spacing, count, rng) -> None:
  """Balls around random negatives turn positive, near the structure and far from it."""
  positive = np.argwhere(mask == POSITIVE)
  radius = _radius(len(positive), spacing)
  # A positive that belongs to the structure is no false one, and none may grow out of it.
  taken = mask == POSITIVE
  box = ndimage.find_objects(taken.astype(np.uint8))[0]
  room = min(count, int(np.count_nonzero(mask == NEGATIVE)))
  while room:
    near = rng.random() < 0.5
    low = [max(0, s.start - (s.stop - s.start) // 2) if near else 0 for s in box]
    high = [min(n, s.stop + (s.stop - s.start) // 2) if near else n
            for s, n in zip(box, mask.shape, strict=True)]
    centre = rng.integers(low, high)
    if mask[tuple(centre)] != NEGATIVE and np.count_nonzero(mask == NEGATIVE) > mask.size // 50:
      continue
    if mask[tuple(centre)] != NEGATIVE:
      free = np.argwhere(mask == NEGATIVE)
      centre = free[rng.integers(len(free))]
    room -= _fill(mask, centre, radius * rng.uniform(0.2, 0.6), spacing, NEGATIVE, POSITIVE, room)


def _fill(mask, centre, radius, spacing, old: int, new: int, most: int) -> int:
  """Changes the voxels of a ball from one value to another, the inner ones first; how many."""
  reach = np.maximum(1, np.ceil(radius / spacing)).astype(int)
  box = tuple(slice(max(0, c - r), min(n, c + r + 1))
              for c, r, n in zip(centre, reach, mask.shape, strict=True))
  axes = np.meshgrid(*((np.arange(s.start, s.stop) - c) * d
                       for s, c, d in zip(box, centre, spacing, strict=True)), indexing="ij")
  distance = np.sqrt(sum(a**2 for a in axes))
  index = np.argwhere((mask[box] == old) & (distance <= max(radius, 1e-9)))
  order = np.argsort(distance[tuple(index.T)], kind="stable")
  index = index[order[:most]]
  mask[box][tuple(index.T)] = new
  return len(index)


def _jitter(mask, spacing, count, rng) -> None:
  """Adds a smooth random distance to the distance from the surface; bisects its amplitude."""
  positive = mask == POSITIVE
  radius = _radius(int(positive.sum()), spacing)
  tight = ndimage.find_objects(positive.astype(np.uint8))[0]
  margin = np.ceil(radius / spacing).astype(int) + 1
  box = tuple(slice(max(0, s.start - m), min(n, s.stop + m))
              for s, m, n in zip(tight, margin, mask.shape, strict=True))
  part, inside = mask[box], positive[box]
  depth = np.full(part.shape, radius, np.float32)  # of a structure that fills its box
  if not inside.all():
    depth = ndimage.distance_transform_edt(inside, sampling=spacing).astype(np.float32)
    depth -= ndimage.distance_transform_edt(~inside, sampling=spacing).astype(np.float32)
    # The surface lies half a voxel outside of the last centre.
    depth -= np.sign(depth) * np.float32(0.5 * spacing.min())
  field = smooth_field(rng, part.shape, np.maximum(1.0, 0.4 * radius / spacing))
  labelled = (part == POSITIVE) | (part == NEGATIVE)

  def moved(amplitude):
    return (depth + np.float32(amplitude) * field > 0) & labelled

  low, high = 0.0, 2 * radius
  for _ in range(BISECTIONS):
    middle = (low + high) / 2
    if np.count_nonzero(moved(middle) != inside) > count:
      high = middle
    else:
      low = middle
  result = moved(low)
  part[labelled] = np.where(result, POSITIVE, NEGATIVE)[labelled]


def _radius(voxels: int, spacing: Sequence[float]) -> float:
  """Of the ball (disc) of that volume (area), in mm."""
  size = voxels * float(np.prod(spacing))
  return (size * 3 / (4 * np.pi)) ** (1 / 3) if len(spacing) == 3 else (size / np.pi) ** 0.5


_DAMAGES = {"parts": _cut, "false_positives": _add, "false_negatives": _punch, "boundary": _jitter}
