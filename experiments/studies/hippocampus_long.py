"""Hippocampus to convergence: whether the order after few steps is that of the end. One seed.

  condseg-study hippocampus_long --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.comparison("hippocampus", steps=base.STEPS["hippocampus_long"])
  return Study("hippocampus_long", base.named(found), seconds=base.TASKS["hippocampus"].seconds)
