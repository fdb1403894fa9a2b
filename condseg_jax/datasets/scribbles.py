"""Weak labels: strokes inside a class and outside it, and nothing said of the rest."""

import concurrent.futures
import dataclasses
import hashlib
import os

import numpy as np
from scipy import ndimage

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.datasets.corrupt import distance_to
from condseg_jax.errors import InputError

SHRINK = 0.3  # of the greatest depth: strokes keep away from the boundary
COARSE = 128  # pixels along the shorter side of what is thinned
WORKERS = 8  # slices at a time, at most
BAND = 0.15  # width of the band around the class, as a part of the slice's shorter side


@dataclasses.dataclass(frozen=True)
class Scribbles:
  """Strokes as an annotator might draw them, slice by slice.

  Attributes:
    rate: part of the axial slices that get strokes, above 0 and at most 1; a picture always gets
      them, and so does one slice that shows the class, if any does.
    seed: of the choice of slices, which also depends on the name of the mask.
  """

  rate: float
  seed: int = 0

  def __post_init__(self):
    if not 0 < self.rate <= 1:
      raise InputError("--scribbles", f"{self.rate:g}", "a part above 0, at most 1", usage=True)

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str, *,
            in_place: bool = False) -> np.ndarray:
    """The mask where the strokes are, unlabelled elsewhere.

    Strokes are skeletons: of the class, shrunk; of a band around it; and of the background beyond.

    Args:
      mask: three-valued, uint8 [D, H, W] or [H, W].
      spacing: mm along each axis (unused: strokes are drawn in pixels).
      name: CASE/CLASS; masks of other names get strokes in other slices.
      in_place: change `mask` itself; no other array of its size is needed then.
    """
    out = mask if in_place else np.empty_like(mask)
    if mask.ndim == 2:
      out[...] = _strokes(mask)
      return out
    key = hashlib.sha256(f"{self.seed}/scribbles/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8]))
    drawn = rng.permutation(len(mask))[:max(1, round(self.rate * len(mask)))]
    shown = np.flatnonzero([(plane == POSITIVE).any() for plane in mask])
    if len(shown) and not np.isin(drawn, shown).any():
      drawn[0] = rng.choice(shown)
    chosen = set(drawn.tolist())

    def draw(index):
      out[index] = _strokes(mask[index]) if index in chosen else UNLABELLED
    with concurrent.futures.ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
      list(pool.map(draw, range(len(mask))))
    return out


def _strokes(mask: np.ndarray) -> np.ndarray:
  out = np.full_like(mask, UNLABELLED)
  inside, outside = mask == POSITIVE, mask == NEGATIVE
  regions = [(inside, POSITIVE)]
  if inside.any():
    width = max(2.0, BAND * min(mask.shape))
    distance = distance_to(inside, (1, 1))
    regions += [(outside & (distance <= width), NEGATIVE), (outside & (distance > width), NEGATIVE)]
  else:
    regions.append((outside, NEGATIVE))
  for region, value in regions:
    out[_skeleton(region)] = value
  return out


def _skeleton(region: np.ndarray) -> np.ndarray:
  """A stroke along the middle of every piece of a region, away from its boundary.

  Large regions are thinned on a coarser grid of at most `COARSE` pixels, whose pixels are then the
  width of the stroke: thinning takes as many passes as the region is deep.
  """
  import SimpleITK as sitk

  out = np.zeros_like(region)
  if not region.any():
    return out
  box = ndimage.find_objects(region.astype(np.uint8))[0]
  inside = region[box]
  step = -(-min(inside.shape) // COARSE)
  small = inside[step // 2::step, step // 2::step]
  if not small.any():
    small, step = inside, 1
  pieces, count = ndimage.label(small)
  # Beyond the edge of the picture is outside, too.
  depth = distance_to(~np.pad(small, 1), (1, 1))[1:-1, 1:-1]
  deepest = ndimage.maximum(depth, pieces, np.arange(count + 1))
  shrunk = small & (depth >= SHRINK * np.asarray(deepest)[pieces])
  thin = sitk.GetArrayFromImage(sitk.BinaryThinning(sitk.GetImageFromArray(
      shrunk.astype(np.uint8)))) > 0
  wide = np.kron(thin, np.ones((step, step), bool))[:inside.shape[0], :inside.shape[1]]
  wide = np.pad(wide, [(0, n - m) for n, m in zip(inside.shape, wide.shape, strict=True)])
  out[box] = wide & inside
  return out
