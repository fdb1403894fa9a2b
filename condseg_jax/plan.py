"""The plan: how images become network input, one for all datasets.

Spacing and intensity statistics are pooled over the whole training set. Nothing here may depend on
the dataset or the class: it would tell the network the class, and a new image has no dataset.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax.errors import InputError

MODALITIES = ("ct", "mr", "rgb")
MIN_FEATURES = 4  # voxels that every axis keeps at the coarsest level
MAX_LEVELS = 5  # poolings, as in the paper


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to prepare, cut and normalise images.

  Attributes:
    modality: `ct` clips to [low, high] and standardises with the pooled mean and sd; `mr`
      standardises each image with its own mean and sd, since its units are arbitrary; `rgb` maps
      0–255 to [-1, 1].
    spacing: target spacing in mm along D, H, W; in pixels (relative to the file) along H, W in 2-D.
    subvolume: shape of the network's input along the same axes.
    low, high: pooled 0.5 and 99.5 foreground percentiles (CT), in HU.
    mean, sd: of the pooled, clipped foreground (CT), in HU.
  """

  modality: str
  spacing: tuple[float, ...]
  subvolume: tuple[int, ...]
  low: float = 0.0
  high: float = 0.0
  mean: float = 0.0
  sd: float = 1.0

  def __post_init__(self):
    if self.modality not in MODALITIES:
      raise InputError(f"modality {self.modality!r}", "is not known",
                       f"one of {', '.join(MODALITIES)}", usage=True)
    if len(self.spacing) != len(self.subvolume):
      raise InputError("plan", f"spacing {self.spacing} and subvolume {self.subvolume} differ in "
                       "their number of axes", "give both D H W, or both H W", usage=True)
    if min(self.spacing, default=0) <= 0 or min(self.subvolume, default=0) < 1:
      raise InputError("plan", f"spacing {self.spacing} and subvolume {self.subvolume} must be "
                       "positive", "correct the config", usage=True)

  @property
  def channels(self) -> int:
    """Of an image."""
    return 3 if self.modality == "rgb" else 1

  @classmethod
  def pooled(cls, modality: str, spacing: Sequence[float], subvolume: Sequence[int],
             foreground: Sequence[np.ndarray]) -> "Plan":
    """A plan with the intensity statistics of a training set.

    Args:
      modality: see `Plan`.
      spacing: target spacing.
      subvolume: shape of the network's input.
      foreground: a sample of the intensities of positive voxels of every training case; each case
        has the same weight whatever its sample's size.
    """
    spacing, subvolume = tuple(map(float, spacing)), tuple(map(int, subvolume))
    if modality != "ct":
      return cls(modality, spacing, subvolume)
    samples = [np.asarray(s, np.float64) for s in foreground if len(s)]
    if not samples:
      raise InputError("training set", "no case has a positive voxel, so there is no intensity to "
                       "normalise by", "check the labels and the classes kept")
    values = np.concatenate(samples)
    weights = np.concatenate([np.full(len(s), 1 / len(s)) for s in samples])
    # Among equal values the weight decides, so that the order of the cases does not.
    order = np.lexsort((weights, values))
    values, weights = values[order], weights[order]
    rank = (np.cumsum(weights) - weights / 2) / weights.sum()
    low, high = np.interp([0.005, 0.995], rank, values)
    clipped = np.clip(values, low, high)
    mean = np.average(clipped, weights=weights)
    sd = np.sqrt(np.average((clipped - mean) ** 2, weights=weights))
    return cls(modality, spacing, subvolume, float(low), float(high), float(mean),
               float(max(sd, 1.0)))

  def normalise(self, image: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """Intensities as the network sees them, float32.

    Args:
      image: a whole image or a part of it.
      mean, sd: of the whole image at the target spacing (used for MR).
    """
    image = np.asarray(image, np.float32)
    if self.modality == "ct":
      image, mean, sd = np.clip(image, self.low, self.high), self.mean, self.sd
    elif self.modality == "rgb":
      mean = sd = 127.5
    image = image - np.float32(mean)
    image /= np.float32(max(sd, 1e-6))  # in place: whole volumes come here
    return image

  def to_json(self) -> dict:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, tree: Mapping) -> "Plan":
    return cls(**{**tree, "spacing": tuple(tree["spacing"]), "subvolume": tuple(tree["subvolume"])})


def same_spacing(a: Sequence[float], b: Sequence[float]) -> bool:
  """Whether two spacings are one, but for what headers and decimals round away."""
  return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-3, atol=0))


def pooled_spacing(spacings: Sequence[Sequence[float]]) -> tuple[float, ...]:
  """The median spacing of a training set, axis by axis."""
  return tuple(float(s) for s in np.median(np.asarray(spacings, np.float64), axis=0))


def pooling_strides(shape: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[int, ...], ...]:
  """Strides of the levels of a network for inputs of a shape, finest first.

  An axis is halved while half of it keeps `MIN_FEATURES` voxels and its spacing is less than twice
  the finest: an anisotropic volume becomes isotropic before all axes are halved together (after
  Isensee et al., nnU-Net, 2021). At least one level, at most `MAX_LEVELS`.
  """
  shape, spacing = list(shape), list(spacing)
  strides = []
  while len(strides) < MAX_LEVELS:
    wide = [axis for axis, size in enumerate(shape) if size >= 2 * MIN_FEATURES]
    finest = min((spacing[axis] for axis in wide), default=0)
    halved = [axis for axis in wide if spacing[axis] < 2 * finest]
    if not halved:
      break
    strides.append(tuple(2 if axis in halved else 1 for axis in range(len(shape))))
    for axis in halved:
      shape[axis], spacing[axis] = -(-shape[axis] // 2), 2 * spacing[axis]
  return tuple(strides) or (tuple(2 if size > 1 else 1 for size in shape),)


def fit_subvolume(
    shape: Sequence[int], spacing: Sequence[float],
    cost: Callable[[tuple[int, ...], tuple[tuple[int, ...], ...]], float],
    budget: float, fixed: Sequence[Sequence[int]] = (),
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
  """The largest subvolume that fits into a budget, and the strides that go with it.

  It begins with the usual shape of the images; the axis that is longest in mm is shortened until
  the budget suffices, so that the rest grows isotropic.

  Args:
    shape: median shape of the prepared images.
    spacing: of their voxels.
    cost: (subvolume, strides) → bytes.
    budget: in bytes.
    fixed: strides of a network that has them already; those of `pooling_strides` when empty.

  Raises:
    InputError: the smallest subvolume does not fit.
  """
  shape = [int(round(size)) for size in shape]
  while True:
    strides = tuple(map(tuple, fixed)) or pooling_strides(shape, spacing)
    unit = np.prod(strides, axis=0)
    subvolume = tuple(int(-(-size // u) * u) for size, u in zip(shape, unit, strict=True))
    if cost(subvolume, strides) <= budget:
      return subvolume, strides
    longest = sorted(range(len(shape)), key=lambda axis: -subvolume[axis] * spacing[axis])
    axis = next((a for a in longest if subvolume[a] > max(unit[a], MIN_FEATURES)), None)
    if axis is None:
      raise InputError("data.memory_gb", f"{budget / 1e9:g} GB do not hold a subvolume of "
                       f"{subvolume}", "give more memory, a smaller batch or fewer channels",
                       usage=True)
    shape[axis] = subvolume[axis] - int(unit[axis])
