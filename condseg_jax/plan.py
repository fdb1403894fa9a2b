"""The plan: spacing, subvolume and intensity normalisation, the same for all datasets.

Spacing and intensity statistics are pooled over the whole training set. They must not depend on the
dataset or the class: the network could infer the class from them, and a new image has no dataset.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax.errors import InputError

MODALITIES = ("ct", "mr", "rgb")
MIN_FEATURES = 4  # minimal number of voxels along an axis at the coarsest level
MAX_LEVELS = 5  # maximal number of poolings, as in the paper


@dataclasses.dataclass(frozen=True)
class Plan:
  """How images are resampled, cropped and normalised.

  Attributes:
    modality: `ct` clips to [low, high] and standardises with the pooled mean and sd; `mr`
      standardises each image with its own mean and sd, since its units are arbitrary; `rgb` maps
      0–255 to [-1, 1].
    spacing: target spacing in mm along D, H, W; in 2-D in pixels of the file along H, W.
    subvolume: shape of the network's input along the same axes.
    low: pooled 0.5 and 99.5 foreground percentiles in HU (CT only).
    high: see `low`.
    mean: mean and standard deviation of the pooled, clipped foreground in HU (CT only).
    sd: see `mean`.
  """

  modality: str
  spacing: tuple[float, ...]
  subvolume: tuple[int, ...]
  low: float = 0.0
  high: float = 0.0
  mean: float = 0.0
  sd: float = 1.0

  def __post_init__(self) -> None:
    if self.modality not in MODALITIES:
      raise InputError(f"modality {self.modality!r}", "unknown modality",
                       f"choose from: {', '.join(MODALITIES)}", usage=True)
    if len(self.spacing) != len(self.subvolume):
      raise InputError("plan", f"spacing {self.spacing} and subvolume {self.subvolume} differ in "
                       "the number of axes", "give D H W for both, or H W for both", usage=True)
    if min(self.spacing, default=0) <= 0 or min(self.subvolume, default=0) < 1:
      raise InputError("plan", f"spacing {self.spacing} and subvolume {self.subvolume} must be "
                       "positive", "correct the config", usage=True)

  @property
  def channels(self) -> int:
    """The number of channels of an image."""
    return channels_of(self.modality)

  @classmethod
  def pooled(cls, modality: str, spacing: Sequence[float], subvolume: Sequence[int],
             foreground: Sequence[np.ndarray]) -> "Plan":
    """Creates a plan with the intensity statistics of a training set.

    Args:
      modality: see `Plan`.
      spacing: target spacing.
      subvolume: shape of the network's input.
      foreground: for every training case, a sample of the intensities of its positive voxels. Each
        case has the same weight, whatever the size of its sample.

    Raises:
      InputError: a CT training set without a positive voxel; see also `Plan`.
    """
    spacing, subvolume = tuple(map(float, spacing)), tuple(map(int, subvolume))
    if modality != "ct":
      return cls(modality, spacing, subvolume)
    samples = [np.asarray(s, np.float64) for s in foreground if len(s)]
    if not samples:
      raise InputError("training set", "no case has a positive voxel, so the intensity statistics "
                       "are undefined", "check the labels and the selected classes")
    values = np.concatenate(samples)
    counts = np.array([len(s) for s in samples])
    weights = np.repeat(1 / counts, counts)
    # Equal values are sorted by weight, so that the result does not depend on the case order; where
    # all weights are equal, as in most large sets, one key is enough.
    one = (counts == counts[0]).all()
    order = np.argsort(values) if one else np.lexsort((weights, values))
    values, weights = values[order], weights[order]
    rank = (np.cumsum(weights) - weights / 2) / weights.sum()
    low, high = np.interp([0.005, 0.995], rank, values)
    clipped = np.clip(values, low, high)
    mean = np.average(clipped, weights=weights)
    sd = np.sqrt(np.average((clipped - mean) ** 2, weights=weights))
    return cls(modality, spacing, subvolume, float(low), float(high), float(mean),
               float(max(sd, 1.0)))

  def normalise(self, image: np.ndarray, mean: float, sd: float) -> np.ndarray:
    """Normalises intensities to the network's input range, float32.

    Args:
      image: a whole image or a part of it.
      mean: mean and standard deviation of the whole image at the target spacing (used for MR).
      sd: see `mean`.
    """
    image = np.asarray(image, np.float32)
    if self.modality == "ct":
      image, mean, sd = np.clip(image, self.low, self.high), self.mean, self.sd
    elif self.modality == "rgb":
      mean = sd = 127.5
    image = image - np.float32(mean)
    image /= np.float32(max(sd, 1e-6))  # in place: the image may be a whole volume
    return image

  def to_json(self) -> dict:
    """Returns the plan as a JSON-compatible dict; `from_json` is the inverse."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, tree: Mapping) -> "Plan":
    """Creates a plan from the output of `to_json`."""
    return cls(**{**tree, "spacing": tuple(tree["spacing"]), "subvolume": tuple(tree["subvolume"])})


def channels_of(modality: str) -> int:
  """Returns the number of channels of an image."""
  return 3 if modality == "rgb" else 1


def same_spacing(a: Sequence[float], b: Sequence[float]) -> bool:
  """Returns whether two spacings are equal up to the rounding errors of headers (0.1 %)."""
  return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-3, atol=0))


def pooled_spacing(spacings: Sequence[Sequence[float]]) -> tuple[float, ...]:
  """Returns the median spacing of a training set, axis by axis."""
  return tuple(float(s) for s in np.median(np.asarray(spacings, np.float64), axis=0))


def pooling_strides(shape: Sequence[float],
                    spacing: Sequence[float]) -> tuple[tuple[int, ...], ...]:
  """Returns the strides of the levels of a network for an input shape, finest level first.

  An axis is halved while half of it has at least `MIN_FEATURES` voxels and its spacing is less
  than twice the finest spacing: an anisotropic volume becomes isotropic before all axes are halved
  together (after Isensee et al., nnU-Net, 2021). At least one level, at most `MAX_LEVELS`.
  """
  shape, spacing = list(shape), list(spacing)
  strides: list[tuple[int, ...]] = []
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
    shape: Sequence[float] | np.ndarray, spacing: Sequence[float],
    cost: Callable[[tuple[int, ...], tuple[tuple[int, ...], ...]], float],
    budget: float, fixed: Sequence[Sequence[int]] = (),
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
  """Returns the largest subvolume within a memory budget, and the strides for it.

  Starts with the median shape of the images and shortens the axis that is longest in mm until the
  subvolume fits, which makes its extent more isotropic.

  Args:
    shape: median shape of the prepared images.
    spacing: their spacing.
    cost: (subvolume, strides) → bytes.
    budget: in bytes.
    fixed: strides of the network, if they are given; those of `pooling_strides` if empty.

  Raises:
    InputError: the smallest subvolume does not fit.
  """
  shape = [int(round(size)) for size in shape]
  while True:
    strides = tuple(tuple(level) for level in fixed) or pooling_strides(shape, spacing)
    unit = np.prod(strides, axis=0)
    subvolume = tuple(int(-(-size // u) * u) for size, u in zip(shape, unit, strict=True))
    if cost(subvolume, strides) <= budget:
      return subvolume, strides
    longest = sorted(range(len(shape)), key=lambda axis: -subvolume[axis] * spacing[axis])
    axis = next((a for a in longest if subvolume[a] > max(unit[a], MIN_FEATURES)), None)
    if axis is None:
      raise InputError("data.memory_gb", f"{budget / 1e9:g} GB are too little for a subvolume of "
                       f"{subvolume}", "raise it, or use a smaller batch or fewer channels",
                       usage=True)
    shape[axis] = subvolume[axis] - int(unit[axis])
