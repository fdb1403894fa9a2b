"""Hippocampus with another encoder: dense, residual (ResNet) or plain (VGG, U-Net).

All else is as in `hippocampus.py`, including its dense, class-conditioned decoder:

  condseg-train --config=experiments/configs/encoders.py:residual --config.data.root=DATA \
    --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

The number of layers with a window of 3 is the same for all: one in the finest block, two in the
others. Parameters: dense 276 001, residual 237 585, plain 236 161. Not run here.
"""

from condseg_jax.configs import hippocampus


def get_config(encoder: str = "dense"):
  config = hippocampus.get_config()
  config.model.encoder_block = encoder
  return config
