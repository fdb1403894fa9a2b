"""CamVid (240×180, 11 classes): the comparison in another domain, in 2-D, with thin classes.

Frames are dealt to the classes in blocks of six; pooled IoU over `val`, void ignored. The eleven
networks of `indivs` have the steps of one together; eleven times as many were not run. `full` sees
every label of every frame, one class of each frame it draws.

  condseg-study camvid --data=DATA --out=results
"""

from condseg_jax.studies import base
from condseg_jax.study.declare import Study


def get_study():
  found = base.comparison("camvid")
  del found["indivs_long"]
  return Study("camvid", base.named(found), seeds=(0, 1, 2), seconds=base.TASKS["camvid"].seconds)
