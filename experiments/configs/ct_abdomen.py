"""The protocol of Dmitriev & Kaufman (CVPR 2019): liver, pancreas and spleen from three CT sets.

Not run here: needs the data, Sliver07, NIH Pancreas-CT and, for the paper's 74 private spleen CTs,
MSD Task09:

  condseg-prepare --format=sliver07 --source=SLIVER07 --spacing=2.5,0.8,0.8 --out=DATA/liver
  condseg-prepare --format=nih_pancreas --source=NIH --spacing=2.5,0.8,0.8 --out=DATA/pancreas
  condseg-prepare --format=msd --source=Task09_Spleen --spacing=2.5,0.8,0.8 --out=DATA/spleen
  condseg-train --config=experiments/configs/ct_abdomen.py --config.data.root=DATA --workdir=RUN

From the paper: six levels with an 8×8×1 bottleneck for 256×256×32, hash condition in the decoder,
batch 2 of one class each, Adam 5e-5, 25 000 steps, small rotations, zooms and shifts, Dice. Chosen
here, not stated in the paper: two layers per block, 16 channels per level, group normalisation,
leaky ReLU, spacing, CT window.
"""

from condseg_jax.configs import base


def get_config():
  config = base.get_config()
  config.data.spacing = (2.5, 0.8, 0.8)
  config.data.subvolume = (32, 256, 256)
  config.data.batch_class = "single"
  config.data.presets = {"abdomen": ("liver", "spleen", "pancreas")}
  config.augment.update(probability=1.0, rotate=10.0, zoom=0.1, shift=0.05, scale=0.0, offset=0.0,
                        gamma=0.0, noise=0.0)
  config.model.strides = ((2, 2, 2),) * 5
  config.model.layers_per_level = (2,) * 6
  config.model.dtype = "bfloat16"
  config.loss.bce_weight = 0.0
  config.optimizer.update(learning_rate=5e-5, schedule="constant", warmup=0, clip_norm=0.0)
  config.train.update(steps=25_000, log_every=50, eval_every=2_500)
  return config
