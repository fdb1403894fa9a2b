"""DeepLabv3 (Chen et al., 2017) on CamVid, 2-D, every label on every training frame.

A residual encoder with three poolings, whose last level is dilated in place of a fourth (output
stride 8), atrous spatial pyramid pooling with the image mean, linear upsampling. Otherwise as
`unet.py`, including the data:

  condseg-prepare --format=camvid --source=CAMVID --carve=none --out=DATA
  condseg-train --config=experiments/configs/deeplab.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

The rates of the paper, 6, 12 and 18 on a level of 33×33, are scaled to a level of 12×16. Unlike the
paper: trained from scratch, without ImageNet; a small encoder without multi-grid; group
normalisation. 657 403 parameters. Not run here.
"""

from condseg_jax.configs import unet


def get_config():
  config = unet.get_config()
  config.model.update(decoder="deeplab", encoder_block="residual", rates=(2, 4, 6),
                      strides=((2, 2), (2, 2), (2, 2), (1, 1)), layers_per_level=(2, 2, 4, 4, 4))
  return config
