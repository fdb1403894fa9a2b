"""Second of two stages: each class within the box that `two_stage_coarse.py`, which see, has found.

Every subvolume of the training is centred on the class, since nothing else is asked of it:

  condseg-train --config=experiments/configs/two_stage_fine.py --config.data.root=DATA/train \
    --workdir=FINE
  condseg-evaluate --workdir=FINE --locator=COARSE --data=DATA/test --out=SCORES

Alone, without --locator, it has never seen how the rest of the body looks. Not run here.
"""

from condseg_jax.configs import phantom


def get_config():
  config = phantom.get_config()
  config.data.spacing = (2.75, 2.75, 2.75)
  config.data.subvolume = (32, 64, 64)
  config.data.foreground_fraction = 1.0
  return config
