"""Hippocampus MR (MSD Task04): anterior and posterior part from two single-class halves.

DATA is the MSD folder with a splits.json:
{"train": {"anterior": [ids], "posterior": [ids]},
"val": [ids]}. The 80 cases of each half annotate only their class; `val` is scored only at the
end, and tuning uses the held-out tenth of the training cases.

  condseg-train --config=experiments/configs/hippocampus.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

With --config.train.minutes=8 on two CPU cores, in bfloat16: 2,881 steps, and Dice on the 40 cases
of `val`, mean [95 % interval]: anterior 0.906 [0.895, 0.915], posterior 0.890 [0.880, 0.898], mean
0.898. Longer is no better with these 144 cases: 0.895 after 7,212 steps, 30 minutes on one core.

With the steps below, in float32 on one CPU core (pinned, other work on the second), 11.5 minutes
for 1,500 steps: anterior 0.902 [0.892, 0.912], posterior 0.887 [0.876, 0.895], mean 0.894. Held-out
training cases, each on its single class: 0.877.

With group normalisation, 8 channels and 1,000 steps, as it was before: 0.877 in 12 minutes on two
CPU cores under load, 0.869 in 79 seconds on one H100 (90 steps/s, TF32).

The class vector is a learned embedding. With the hash value, the learning rate and augmentation of
base, and 600 steps: 0.847 on `val`.
"""

from condseg_jax.configs import base


def get_config():
  config = base.get_config()
  config.data.spacing = (1.0, 1.0, 1.0)
  config.data.subvolume = (40, 56, 40)
  config.data.lateral_axes = {"anterior": ("H",), "posterior": ("H",)}
  config.augment.update(probability=0.3, rotate=10.0, zoom=0.1)
  config.model.update(channels=16, growth=16)
  config.conditioning.vector = "embedding"
  config.optimizer.learning_rate = 5e-3
  config.train.update(steps=1_500, eval_every=500)
  return config
