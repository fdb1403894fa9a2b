"""The single-organ specialist: the network of `hippocampus.py` for one class, unconditioned.

It sees only the cases that annotate its class; one specialist per class forms the baseline of a
conditioned network. For equal compute give each --config.train.steps=500, half of the steps; with
all steps each sees its class twice as often as the conditioned network.

  condseg-train --config=experiments/configs/specialist.py:anterior --config.data.root=DATA \
    --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

For another dataset copy these two lines into a copy of its config. Not run here.
"""

from condseg_jax.configs import hippocampus


def get_config(name: str = "anterior"):
  config = hippocampus.get_config()
  config.data.include_classes = (name,)
  config.conditioning.position = "none"
  return config
