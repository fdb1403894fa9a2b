"""Phantom CTs: the comparison again, every class asked for alone.

Where all classes of a test image compete for its voxels, a network that answers too much for each
of them is put right by the others. A user who asks for one class has no others: these are the
trainings of `phantom`, and their masks one at a time.

  python -m experiments.study phantom_alone --out=results
"""

from studies import base

from condseg_jax.study.declare import Study


def get_study():
  found = base.alone(base.comparison("phantom"))
  return Study("phantom_alone", base.named(found), seconds=base.TASKS["phantom"].seconds)
