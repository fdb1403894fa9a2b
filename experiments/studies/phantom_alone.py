"""Phantom CTs: the comparison again, every class asked for alone.

Where all classes of a test image compete for its voxels, a network that answers too much for each
of them is put right by the others. A user who asks for one class has no others: these are the
trainings of `phantom`, and their masks one at a time.

  condseg-study phantom_alone --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.alone(base.comparison("phantom"))
  return Study("phantom_alone", base.named(found), seconds=base.TASKS["phantom"].seconds)
