"""Hippocampus from image labels: of each small subvolume, whether a part of it is there or not.

Weak supervision after Pinheiro & Collobert (CVPR 2015): the score of a subvolume is a smooth
maximum of its logits, log-mean-exp with sharpness 5, and no voxel's label enters the loss. Whole
images would say nothing, since all of them show both parts: subvolumes are small, and half of them
lie around a voxel of the class. That, and the `dice` of the log and of the held-out cases, which
are measured and not learned, is all that masks are used for.

  condseg-train --config=experiments/configs/image_labels.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

Such a score asks for one sure voxel, not for the whole structure: masks too small, or blobs around
what gives the class away, are to be expected. Not run here.
"""

from condseg_jax.configs import hippocampus


def get_config():
  config = hippocampus.get_config()
  config.data.subvolume = (16, 24, 16)
  config.data.batch_size = 16
  config.data.foreground_fraction = 0.5
  config.loss.objective = "image_level"
  return config
