"""FCN-8s (Long et al., CVPR 2015) on CamVid, 2-D, every label on every training frame.

An encoder like VGG (Simonyan & Zisserman, ICLR 2015) with five poolings, and the scores of its
three coarsest levels, at an 8th, 16th and 32nd of the resolution, upsampled and summed; no details
of the finer levels come back. Otherwise as `unet.py`, its data too:

  condseg-prepare --format=camvid --source=CAMVID --carve=none --out=DATA
  condseg-train --config=experiments/configs/fcn.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

Unlike the paper: from scratch and not from ImageNet, narrower, with group normalisation, and linear
interpolation that is not learned. 577 851 parameters. Not run here.
"""

from condseg_jax.configs import unet


def get_config():
  config = unet.get_config()
  config.model.update(decoder="fcn", strides=((2, 2),) * 5, layers_per_level=(2, 2, 3, 3, 3, 3))
  return config
