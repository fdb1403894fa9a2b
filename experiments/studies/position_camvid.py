"""CamVid: which decoder levels need the condition.

The condition enters the n finest levels; all coarser levels are shared by the classes and computed
once per image.

  condseg-study position_camvid --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study

LEVELS = 4  # of the decoder


def get_study():
  return Study("position_camvid", tuple(base.positions("camvid", LEVELS)),
               reference=f"cond_dec {LEVELS}", level="finest levels that see the class",
               seconds=base.TASKS["camvid"].seconds)
