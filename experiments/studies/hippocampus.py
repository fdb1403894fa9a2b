"""Hippocampus: the position of the condition, and the baselines.

The comparison of Dmitriev & Kaufman (CVPR 2019, table 1) on real data: two classes from two
single-class halves, scored on the fully labelled `val`. So few steps measure the speed of
convergence as much as the final score; `hippocampus_long` trains to convergence.

  condseg-study hippocampus --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  return Study("hippocampus", base.named(base.comparison("hippocampus")), seeds=(0, 1, 2),
               seconds=base.TASKS["hippocampus"].seconds)
