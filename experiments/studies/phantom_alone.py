"""Phantom CTs: the comparison scored one class at a time.

When all classes of a test image compete for its voxels, over-segmentation of one class is corrected
by the others. A user who requests a single class has no others: this study scores the trainings of
`phantom` one mask at a time.

  condseg-study phantom_alone --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.alone(base.comparison("phantom"))
  return Study("phantom_alone", base.named(found), seconds=base.TASKS["phantom"].seconds)
