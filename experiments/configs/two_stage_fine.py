"""Second of two stages: segments each class within the box found by `two_stage_coarse.py`.

Every training subvolume is centred on the class, as at prediction:

  condseg-train --config=experiments/configs/two_stage_fine.py --config.data.root=DATA/train \
    --workdir=FINE
  condseg-evaluate --workdir=FINE --locator=COARSE --data=DATA/test --out=SCORES

Do not use it without --locator: it has never seen the rest of the body. Not run here.
"""

from condseg_jax.configs import phantom


def get_config():
  config = phantom.get_config()
  config.data.spacing = (2.75, 2.75, 2.75)
  config.data.subvolume = (32, 64, 64)
  config.data.foreground_fraction = 1.0
  return config
