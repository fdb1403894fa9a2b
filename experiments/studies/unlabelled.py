"""What unlabelled voxels are worth: phantom CTs of five organs, each annotated by one dataset.

Every dataset has a scanner of its own, and every scanner is met in the test with all five organs.
`masked` learns nothing from unlabelled voxels; `masked_longer` takes the steps that it can in the
minutes of `exclusion`, which decodes one more class per image, and `masked_longest` those in the
minutes of `pseudo` with the two networks that make its masks. `full` has the masks of all organs
and, like most others, decodes one class per image.

  condseg-study unlabelled --out=results
"""

from condseg_jax.datasets.synthetic.anatomy import ORGANS
from condseg_jax.study.declare import Member
from condseg_jax.study.declare import Study
from condseg_jax.study.declare import Variant

STEPS = 800
LONGER = 1.37  # steps of `masked` in the time of one of `exclusion`, or of `pseudo`
LONGEST = 2 + LONGER  # the networks of two folds, and the one that learns from them

# The settings that set each arm apart.
ARMS: dict[str, dict[str, object]] = {
    "masked": {},
    "masked_longer": {"train.steps": round(LONGER * STEPS)},
    "masked_longest": {"train.steps": round(LONGEST * STEPS)},
    "exclusion": {"loss.exclusion_classes": 1},
    "cutmix": {"augment.cutmix": 0.5},
    "pseudo": {},
    "full": {},
}
DATASETS = {"pseudo": "phantom_five_pseudo", "full": "phantom_five_full"}


def get_study():
  common = {"data.classes": ORGANS, "data.presets": {}, "train.steps": STEPS,
            "model.dtype": "float32"}
  variants = [Variant(name, (Member("phantom", {**common, **changes}),),
                      DATASETS.get(name, "phantom_five"))
              for name, changes in ARMS.items()]
  return Study("unlabelled", tuple(variants), seeds=(0, 1), reference="masked", seconds=0.3)
