"""Cityscapes at half size, 19 classes as single-class datasets, 2-D.

Not run here: needs the data. DATA holds leftImg8bit/ and gtFine/ as downloaded; training frames are
assigned to the classes in blocks of six, round-robin within each city:

  condseg-train --config=experiments/configs/cityscapes.py --config.data.root=DATA --workdir=RUN
"""

from condseg_jax.configs import camvid


def get_config():
  config = camvid.get_config()
  config.data.spacing = (2.0, 2.0)  # 2048×1024 to 1024×512
  config.data.subvolume = (512, 512)
  config.data.batch_size = 16
  config.model.update(strides=((2, 2),) * 5, layers_per_level=(1, 2, 2, 2, 2, 2), dtype="bfloat16")
  config.train.update(steps=40_000, log_every=50, eval_every=4_000)
  return config
