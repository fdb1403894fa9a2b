"""Hippocampus: the comparison again, every class asked for alone.

Where all classes of a test image compete for its voxels, a network that answers too much for each
of them is put right by the others. A user who asks for one class has no others: these are the
trainings of `hippocampus`, and their masks one at a time.

  condseg-study hippocampus_alone --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.alone(base.comparison("hippocampus"))
  return Study("hippocampus_alone", base.named(found), seeds=(0, 1, 2),
               seconds=base.TASKS["hippocampus"].seconds)
