"""Hippocampus from image-level labels: whether a class is present in each small subvolume.

Weak supervision after Pinheiro & Collobert (CVPR 2015): the score of a subvolume is a smooth
maximum of its logits, log-mean-exp with sharpness 5, and no voxel label enters the loss. Whole
images would be uninformative, since all of them show both parts: subvolumes are small, and half of
them are centred on a voxel of the class. Masks are used only for this placement and for the `dice`
in the log and on the held-out cases, which is measured but not trained on.

  condseg-train --config=experiments/configs/image_labels.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

Such a score rewards one confident voxel, not the whole structure: expect masks that are too small,
or blobs around the most discriminative region. Not run here.
"""

from condseg_jax.configs import hippocampus


def get_config():
  config = hippocampus.get_config()
  config.data.subvolume = (16, 24, 16)
  config.data.batch_size = 16
  config.data.foreground_fraction = 0.5
  config.loss.objective = "image_level"
  return config
