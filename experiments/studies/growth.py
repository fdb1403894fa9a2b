"""What growing costs and brings: each organ of the phantoms joins a network of the other two.

`joint` learns all three from the beginning, `without_ORGAN` the other two, in as many steps. From
there `auto` has the old images at hand, the other arms do not; their minutes are those of growing.
A fifth of the cases is held out in all arms, by which `auto` is judged.

  condseg-study growth --out=results
"""

from condseg_jax.study.declare import Growth
from condseg_jax.study.declare import Member
from condseg_jax.study.declare import Study
from condseg_jax.study.declare import Variant

ORGANS = ("liver", "spleen", "pancreas")
STEPS = 800
ARMS = {
    "auto": {}, "level_1": {"level": "1"}, "level_2_without_old": {"level": "2", "old": False},
    "naive": {"level": "naive", "old": False}}


def get_study():
  joint = Member("phantom", {
      "data.hold_out": 0.2, "data.presets": {}, "model.channels": 8, "model.growth": 8,
      "model.dtype": "float32", "train.steps": STEPS, "train.eval_every": STEPS})
  variants = [Variant("joint", (joint,), "phantom")]
  for organ in ORGANS:
    others = tuple(name for name in ORGANS if name != organ)
    base = joint.replace(data__include_classes=others, data__classes=others)
    variants.append(Variant(f"without_{organ}", (base,), "phantom"))
    variants += [Variant(f"{name}_{organ}", (base,), "phantom", growth=Growth((organ,), **how))
                 for name, how in ARMS.items()]
  return Study("growth", tuple(variants), reference="joint", seconds=0.4)
