"""Hippocampus: the comparison again, in networks with instance normalisation. One seed.

`mechanisms_hippocampus` shows that the normalisation of the network changes more than the way in
which the class enters. Is what sets the variants of `hippocampus` apart still there with it?

  condseg-study hippocampus_instance --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.comparison("hippocampus")
  variants = {name: variant.replace(model__norm="instance") for name, variant in found.items()}
  return Study("hippocampus_instance", base.named(variants),
               seconds=base.TASKS["hippocampus"].seconds)
