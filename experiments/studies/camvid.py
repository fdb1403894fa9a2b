"""CamVid (240×180, 11 classes): the comparison in another domain, in 2-D, with thin classes.

Frames are assigned to the classes in blocks of six; pooled IoU over `val`, void ignored. The eleven
networks of `indivs` share the steps of one network; eleven times as many were not run. `full` sees
every label of every frame, one class per sampled frame.

  condseg-study camvid --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.comparison("camvid")
  del found["indivs_long"]
  return Study("camvid", base.named(found), seeds=(0, 1, 2), seconds=base.TASKS["camvid"].seconds)
