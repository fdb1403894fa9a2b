"""What it costs that images stay where they are: three sites, each with one organ of the phantoms.

`pooled` trains on the images of all sites. The federated arms take as many steps altogether, a
third of them at each site, in rounds of 7, 13 or 27 steps; `specialists` are the sites alone, each
with its third.

  condseg-study federated --out=results
"""

from condseg_jax.study.declare import Federated
from condseg_jax.study.declare import Member
from condseg_jax.study.declare import Study
from condseg_jax.study.declare import Variant

ORGANS = ("liver", "spleen", "pancreas")
STEPS = 800
ARMS = {
    "federated": Federated(20, 13), "more_rounds": Federated(38, 7),
    "fewer_rounds": Federated(10, 27), "proximal": Federated(20, 13, proximal=0.1),
    "teaching": Federated(20, 13, teaching=0.5)}


def get_study():
  pooled = Member("phantom", {
      "data.hold_out": 0.0, "data.presets": {}, "model.channels": 8, "model.growth": 8,
      "model.dtype": "float32", "train.steps": STEPS, "train.eval_every": STEPS})
  alone = tuple(pooled.replace(data__include_classes=(organ,), data__classes=(organ,),
                               train__steps=STEPS // 3, train__eval_every=STEPS // 3)
                for organ in ORGANS)
  variants = [Variant("pooled", (pooled,), "phantom"), Variant("specialists", alone, "phantom"),
              *(Variant(name, (pooled,), "phantom", federated=how) for name, how in ARMS.items())]
  return Study("federated", tuple(variants), reference="pooled", seconds=0.4)
