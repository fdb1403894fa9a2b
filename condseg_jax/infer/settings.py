"""How a volume is to be segmented: what the flags of `condseg-predict` set."""

from collections.abc import Mapping
import dataclasses

from condseg_jax.errors import InputError
from condseg_jax.infer import fuse

# Times the spacing of the training. A network knows structures of the sizes that it saw: on the
# abdominal phantoms 1.25 costs 0.08 of mean Dice, 1.5 costs 0.28. To find where structures are,
# 1.25 is good enough (Dice afterwards unchanged), 1.5 loses half of the pancreas.
FAST = COARSE = 1.25


@dataclasses.dataclass(frozen=True)
class Settings:
  """Choices for prediction, with defaults that need none.

  Attributes:
    fusion: `argmax`, the most probable class above the threshold; `softmax`, the same after the
      classes and background are made alternatives; `independent`, a mask per class, which may
      overlap (the label map then shows the most probable).
    threshold: probability from which a voxel belongs to a class.
    step: distance of neighbouring windows as a part of the window.
    tta: average over mirror images along the axes that the training mirrored: 2^n times the work.
    fast: at `FAST` times the spacing, about half of the work.
    two_pass: find the box of every class at `COARSE` times the spacing, with windows side by side,
      and look closely only there (coarse to fine, after Zhou et al. 2018 and Roth et al. 2018):
      for volumes that are much larger than what is looked for. Phantoms in fields of view three
      times as long along each axis: 4.3 s in place of 7.9, mean Dice 0.759 and 0.760.
    partition: without windows: the whole volume in one pass, split along its first canonical axis
      over all devices of this process (see `infer.full_volume`).
    memory_bytes: budget on the host for all that does not depend on the file (see
      `infer.schedule`); a sensible part of the machine's memory when None.
    within: class → the class it is part of (tumour → liver). A part takes its voxels from the
      whole, and pieces of it that do not touch the whole are removed.
    priors: weigh the probability of a class by how frequent the training masks show it at that
      place of the field of view (see `infer.fuse`).
    clean: do to the pieces of each class what was best for the cases held out in training, where it
      was found to help (see `evaluate.postprocess_tuning`).
    probabilities: folder for the probabilities of all classes on the network's grid (zarr v3,
      float16); "" for none.
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

  def __post_init__(self):
    fuse.check_fusion(self.fusion)
    if self.partition and (self.tta or self.two_pass):
      raise InputError("partition", "takes the volume as a whole, without windows to mirror or to "
                       "choose from", "leave out tta, two_pass and locator", usage=True)
