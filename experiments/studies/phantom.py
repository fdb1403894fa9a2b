"""Phantom CTs: three organs from three single-organ sets, each with a scanner of its own.

The setting of the paper. Every test case shows all organs under one scanner, so that the table of
class and scanner reveals whether a network mistakes the scanner for the class, and the confusion
matrix which classes it confuses.

  condseg-study phantom --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  return Study("phantom", base.named(base.comparison("phantom")),
               seconds=base.TASKS["phantom"].seconds)
