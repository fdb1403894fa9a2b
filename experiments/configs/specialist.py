"""The single-organ specialist: the network of `hippocampus.py` for one class alone, told nothing.

It sees the cases that annotate its class and no others; as many specialists as classes make what
one conditioned network is compared with. For equal compute give each --config.train.steps=500, half
of the steps; with all of them each has seen its class twice as often as the common network.

  condseg-train --config=experiments/configs/specialist.py:anterior --config.data.root=DATA \
    --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

For another dataset take these two lines over into a copy of its config. Not run here.
"""

from condseg_jax.configs import hippocampus


def get_config(name: str = "anterior"):
  config = hippocampus.get_config()
  config.data.include_classes = (name,)
  config.conditioning.position = "none"
  return config
