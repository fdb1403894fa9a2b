"""Which classes get pseudo-masks, and which voxels of them are labelled."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.data.store import Case
from condseg_jax.errors import InputError
from condseg_jax.geometry import voxel_ml

ROUNDING = 1 + 1e-6  # equal volumes on grids with other affines may differ in the last digits


@dataclasses.dataclass(frozen=True)
class Rules:
  """The thresholds.

  Attributes:
    positive: probability from which on a voxel is positive.
    negative: probability up to which it is negative; it is unlabelled between the two.
    competence: least cross-validated Dice of a class.
  """

  positive: float = 0.8
  negative: float = 0.1
  competence: float = 0.5

  def __post_init__(self):
    if not 0 <= self.negative < 0.5 < self.positive <= 1:  # also refuses nan
      raise InputError("positive", f"{self.positive:g} with `negative` {self.negative:g} leaves no "
                       "voxel undecided", "choose 0 ≤ `negative` < 0.5 < `positive` ≤ 1",
                       usage=True)


@dataclasses.dataclass(frozen=True)
class Competence:
  """What is known of the masks of a class.

  Attributes:
    dice: cross-validated; None if no case was scored.
    range_ml: smallest and largest volume of a true mask with a positive voxel, in ml (in 2-D pixels
      / 1000); None without one, and the class does not join.
    absent: whether a true mask has no positive voxel.
    joins: whether the class gets pseudo-masks.
  """

  dice: float | None
  range_ml: tuple[float, float] | None
  absent: bool
  joins: bool

  def accepts(self, volume_ml: float) -> bool:
    """Returns whether a volume is within the range of true masks."""
    if self.range_ml is None:
      return False
    low, high = self.range_ml
    return self.absent if volume_ml == 0 else low / ROUNDING <= volume_ml <= high * ROUNDING


def competences(names: Sequence[str], scores: Mapping, cases: Iterable[Case],
                rules: Rules) -> dict[str, Competence]:
  """Decides which classes join.

  Args:
    names: the classes.
    scores: cross-validated scores, see `evaluate.cross_validation`.
    cases: the training cases; only annotated classes of each are looked at.
    rules: the thresholds.
  """
  cases, out = list(cases), {}
  for name in names:
    volumes = [case.positives[name] * voxel_ml(np.asarray(case.affine)) for case in cases
               if name in case.annotated]
    present = [volume for volume in volumes if volume]
    dice = scores["classes"].get(name, {}).get("dice")
    out[name] = Competence(
        dice, (min(present), max(present)) if present else None,
        len(present) < len(volumes),
        dice is not None and dice >= rules.competence and bool(present))
  return out


def is_positive(probability: np.ndarray, rivals: np.ndarray, excluded: np.ndarray,
                threshold: float) -> np.ndarray:
  """Returns where a class is found, bool [*shape]; see `pseudo_mask`."""
  return (probability >= threshold) & (probability > rivals) & ~excluded


def pseudo_mask(probability: np.ndarray, rivals: np.ndarray, excluded: np.ndarray,
                rules: Rules) -> np.ndarray:
  """Returns a three-valued mask, uint8 [*shape].

  Args:
    probability: of the class.
    rivals: the largest probability of the other classes with pseudo-masks that exclude it; where it
      is not exceeded, the class is not positive.
    excluded: bool, where the case annotates a class that excludes it, which decides.
    rules: the thresholds.
  """
  mask = np.full(probability.shape, UNLABELLED, np.uint8)
  mask[is_positive(probability, rivals, excluded, rules.positive)] = POSITIVE
  mask[(probability <= rules.negative) | excluded] = NEGATIVE
  return mask
