"""Hippocampus to convergence: whether the order after few steps is that of the end. One seed.

  python -m experiments.study hippocampus_long --data=DATA --out=results
"""

from condseg_jax.study.declare import Study
from studies import base

VARIANTS = ("cond_2nd", "cond_enc", "cond_dec", "full", "indivs", "multi_channel", "heads")


def get_study():
  found = base.comparison("hippocampus", steps=base.STEPS["hippocampus_long"])
  return Study("hippocampus_long", base.named({name: found[name] for name in VARIANTS}),
               seconds=base.TASKS["hippocampus"].seconds)
