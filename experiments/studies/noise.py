"""Hippocampus with damaged training masks: parts missing, and false regions.

Rates are changed voxels in percent of the voxels of the class; the scored truth is undamaged. Is
one network for all classes, with shared features, more robust than one network per class?

  condseg-study noise --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study

KINDS = ("parts", "false_positives")
RATES = (0, 10, 25, 50)


def get_study():
  found = base.comparison("hippocampus")
  variants = []
  for kind in KINDS:
    for rate in RATES:
      dataset = f"hippocampus_{kind}_{rate}" if rate else "hippocampus"
      variants += [found[name].replace(name=f"{name} {kind}", level=rate, dataset=dataset,
                                   against=f"cond_dec {kind} {rate}")
                   for name in ("cond_dec", "indivs")]
  return Study("noise", tuple(variants), reference="cond_dec parts 0",
               level="voxels changed, % of the class", seconds=base.TASKS["hippocampus"].seconds)
