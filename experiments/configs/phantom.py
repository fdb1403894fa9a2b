"""Abdominal CT phantoms: liver, spleen and pancreas from three single-organ datasets.

The embedded default, run by tools/quickstart.sh:

  condseg-prepare --format=phantom --out=DATA
  condseg-train --config=experiments/configs/phantom.py --config.data.root=DATA/train --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA/test --out=SCORES
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.subvolume = (32, 64, 64)
  config.data.classes = ("liver", "spleen", "pancreas")
  config.data.presets = {"abdomen": ("liver", "spleen", "pancreas")}
  config.data.batch_size = 3
  config.model.channels = 8
  config.model.growth = 8
  config.train.steps = 300
  config.train.eval_every = 150
  return config
