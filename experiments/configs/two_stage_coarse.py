"""First of two stages, coarse to fine (after Roth et al., 2018): localises each class.

Abdominal CT phantoms of twice the resolution of `phantom.py`; this network sees them at 5.5 mm, in
a single window, and `two_stage_fine.py` at 2.75 mm within the boxes that this one finds.

  condseg-prepare --format=phantom --size=standard --out=DATA
  condseg-train --config=experiments/configs/two_stage_coarse.py --config.data.root=DATA/train \
    --workdir=COARSE
  condseg-train --config=experiments/configs/two_stage_fine.py --config.data.root=DATA/train \
    --workdir=FINE
  condseg-evaluate --workdir=FINE --locator=COARSE --data=DATA/test --out=SCORES

condseg-predict takes --locator, too. Without a second network, --two_pass localises with the same
network at 1.25 times its spacing. Not run here.
"""

from condseg_jax.configs import phantom


def get_config():
  config = phantom.get_config()
  config.data.spacing = (5.5, 5.5, 5.5)
  config.data.subvolume = (32, 64, 64)
  return config
