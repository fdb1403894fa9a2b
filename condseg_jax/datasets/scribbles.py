"""Scribble annotations: strokes inside and outside of a class; all other voxels are unlabelled."""

import concurrent.futures
import dataclasses
import hashlib
import os
from typing import ClassVar

import numpy as np
from scipy import ndimage

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.datasets.corrupt import distance_to
from condseg_jax.errors import InputError

SHRINK = 0.3  # minimal depth of a stroke, as a fraction of the maximal depth of its region
COARSE = 128  # pixels along the shorter side of a region before thinning
WORKERS = 8  # maximal number of slices processed at a time
BAND = 0.15  # width of the band around the class, as a fraction of the slice's shorter side


@dataclasses.dataclass(frozen=True)
class Scribbles:
  """Replaces a mask by strokes like those of an annotator, slice by slice.

  Attributes:
    rate: fraction of axial slices with strokes, in (0, 1]. If any slice contains the class, at
      least one of these has strokes; a 2-D mask always has them.
    seed: of the selection of slices, which also depends on the name of the mask.
  """

  rate: float
  seed: int = 0

  record_name: ClassVar[str] = "Scribbles"  # part of the store format

  def __post_init__(self) -> None:
    if not 0 < self.rate <= 1:
      raise InputError("rate", f"must be in (0, 1], not {self.rate:g}",
                       "give the fraction of slices with scribbles", usage=True)

  def apply(self, mask: np.ndarray, spacing: tuple[float, ...], name: str, *,  # noqa: ARG002
            in_place: bool = False) -> np.ndarray:
    """Returns the values of the mask on the strokes, unlabelled elsewhere.

    Strokes are skeletons of the eroded class, of a band around it, and of the background beyond.

    Args:
      mask: three-valued, uint8 [D, H, W] or [H, W].
      spacing: mm along each axis (unused: strokes are computed in pixels).
      name: CASE/CLASS; it determines the slices, together with the seed.
      in_place: overwrite `mask`, which avoids another array of its size.
    """
    out = mask if in_place else np.empty_like(mask)
    if mask.ndim == 2:
      out[...] = _strokes(mask)
      return out
    key = hashlib.sha256(f"{self.seed}/scribbles/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8]))
    selected = rng.permutation(len(mask))[:max(1, round(self.rate * len(mask)))]
    positive = np.flatnonzero([(plane == POSITIVE).any() for plane in mask])
    if len(positive) and not np.isin(selected, positive).any():
      selected[0] = rng.choice(positive)
    slices = set(selected.tolist())

    def draw(index: int) -> None:
      out[index] = _strokes(mask[index]) if index in slices else UNLABELLED
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
  """Returns a stroke along the middle of every component of a region, away from its boundary.

  Large regions are thinned on a grid of at most `COARSE` pixels, which determines the width of the
  stroke: the number of thinning passes is proportional to the depth of the region.
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
  components, count = ndimage.label(small)
  # Pixels beyond the image border count as outside.
  depth = distance_to(~np.pad(small, 1), (1, 1))[1:-1, 1:-1]
  deepest = ndimage.maximum(depth, components, np.arange(count + 1))
  shrunk = small & (depth >= SHRINK * np.asarray(deepest)[components])
  thin = sitk.GetArrayFromImage(sitk.BinaryThinning(sitk.GetImageFromArray(
      shrunk.astype(np.uint8)))) > 0
  wide = np.kron(thin, np.ones((step, step), bool))[:inside.shape[0], :inside.shape[1]]
  wide = np.pad(wide, [(0, n - m) for n, m in zip(inside.shape, wide.shape, strict=True)])
  out[box] = wide & inside
  return out
