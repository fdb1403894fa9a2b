"""Hippocampus: the comparison repeated with instance normalisation. One seed.

`mechanisms_hippocampus` shows that the network's normalisation matters more than the conditioning
mechanism. Do the differences between the variants of `hippocampus` persist with it?

  condseg-study hippocampus_instance --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.comparison("hippocampus")
  variants = {name: variant.replace(model__norm="instance") for name, variant in found.items()}
  return Study("hippocampus_instance", base.named(variants),
               seconds=base.TASKS["hippocampus"].seconds)
