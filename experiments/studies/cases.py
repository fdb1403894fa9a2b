"""Hippocampus from fewer cases of each class, at the same number of steps.

Each specialist is trained for as many steps as the network of all classes.

  condseg-study cases --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study

CASES = (5, 10, 20, 40, 80)  # per class; 80 is all of them


def get_study():
  found = base.comparison("hippocampus")
  variants = [found[name].replace(name=name, level=count, against=f"cond_dec {count}",
                                data__max_cases=0 if count == CASES[-1] else count)
              for count in CASES
              for name in ("cond_dec", "indivs_long")]
  return Study("cases", tuple(variants), reference=f"cond_dec {CASES[-1]}",
               level="cases of each class", seconds=base.TASKS["hippocampus"].seconds)
