"""Hippocampus: conditioning mechanisms and class vectors.

Is a fixed hash naive? Does the mechanism matter? Channels as in the paper, with a hash, a one-hot
and a learned vector; other mechanisms with a learned vector; at the head, weights generated from
the class (DoDNet) and one output per class.

  condseg-study mechanisms_hippocampus --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  return Study("mechanisms_hippocampus", tuple(base.mechanisms("hippocampus")),
               reference="cond_dec channel embedding", seconds=base.TASKS["hippocampus"].seconds)
