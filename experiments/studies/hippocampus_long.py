"""Hippocampus to convergence: does the ranking after few steps persist? One seed.

  condseg-study hippocampus_long --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.comparison("hippocampus", steps=base.STEPS["hippocampus_long"])
  return Study("hippocampus_long", base.named(found), seconds=base.TASKS["hippocampus"].seconds)
