"""U-Net (Ronneberger et al., MICCAI 2015) on CamVid, 2-D, every label on every training frame.

The fully supervised baseline of `camvid.py`: two 3×3 layers per level, one output channel per
class, no class conditioning. All eleven classes are decoded for every image, and encoder and
decoder run once.

  condseg-prepare --format=camvid --source=CAMVID --carve=none --out=DATA
  condseg-train --config=experiments/configs/unet.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

Unlike the paper: padded convolutions with group normalisation, widths in proportion to the level,
and the loss of this repository, Dice and binary cross-entropy per class. 471 755 parameters
(`camvid.py`: 739 673). Not run here.
"""

from condseg_jax.configs import camvid


def get_config():
  config = camvid.get_config()
  config.data.classes_per_image = 0
  config.data.batch_size = 4
  config.model.update(encoder_block="plain", decoder_block="plain", layers_per_level=(2,) * 5)
  config.conditioning.update(position="output_head", mechanism="output")
  return config
