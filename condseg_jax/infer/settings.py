"""Settings of prediction, as set by the flags of `condseg-predict`."""

from collections.abc import Mapping
import dataclasses

from condseg_jax.errors import InputError
from condseg_jax.infer import fuse

# Multiple of the training spacing. A network recognises structures at the sizes it was trained on:
# on the abdominal phantoms 1.25 costs 0.08 of mean Dice, 1.5 costs 0.28. For locating structures
# 1.25 is sufficient (final Dice unchanged), while 1.5 loses half of the pancreas.
FAST = COARSE = 1.25


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of prediction; the defaults suit most images.

  Attributes:
    fusion: `argmax`, the most probable class above the threshold; `softmax`, the same after classes
      and background are made mutually exclusive; `independent`, one mask per class, which may
      overlap (the label map then holds the most probable class).
    threshold: probability from which a voxel belongs to a class, in [0, 1].
    step: distance of neighbouring windows as a fraction of the window, in (0, 1].
    tta: average over mirror images along the axes that training mirrored: 2^n times the work.
    fast: predict at `FAST` times the spacing, about half of the work.
    two_pass: locate each class at `COARSE` times the spacing with adjacent windows, then predict
      only within its box (coarse to fine, after Zhou et al. 2018 and Roth et al. 2018). For volumes
      much larger than the structures. On phantoms in fields of view three times as long along each
      axis: 4.3 s instead of 7.9 s, mean Dice 0.759 and 0.760.
    partition: predict the whole volume in one pass without windows, split along its first canonical
      axis over all devices of this process (see `infer.full_volume`).
    memory_bytes: host memory budget for everything but the image as read (see `infer.schedule`);
      `schedule.default_budget` when None.
    within: part → the class that contains it (tumour → liver). A part takes its voxels from the
      whole, and components of it that do not touch the whole are removed.
    priors: weight class probabilities by their frequency in the training masks at the same position
      in the field of view (see `infer.fuse`).
    clean: filter the connected components of each class as tuned on held-out training cases (see
      `evaluate.postprocess_tuning`).
    probabilities: folder for the probabilities of all classes on the network's grid (zarr v3,
      float16); "" for none.
    uncertainty: also compute how undecided the prediction is at every voxel (see
      `infer.fuse.Entropy`).

  Raises:
    InputError: an unknown fusion, a value out of range, or settings that exclude each other.
  """

  fusion: str = "argmax"
  threshold: float = 0.5
  step: float = 0.5
  tta: bool = False
  fast: bool = False
  two_pass: bool = False
  partition: bool = False
  memory_bytes: int | None = None
  within: Mapping[str, str] = dataclasses.field(default_factory=dict)
  priors: bool = False
  clean: bool = True
  probabilities: str = ""
  uncertainty: bool = False

  def __post_init__(self):
    fuse.check_fusion(self.fusion)
    if not 0 <= self.threshold <= 1:  # also refuses nan
      raise InputError("threshold", f"is {self.threshold}", "must be in [0, 1]", usage=True)
    if not 0 < self.step <= 1:
      raise InputError("step", f"is {self.step}", "must be in (0, 1]", usage=True)
    fuse.ranks(self.within)
    if self.partition and (self.tta or self.two_pass):
      raise InputError("partition", "uses no windows, which tta, two_pass and a locator need",
                       "use one or the other", usage=True)
