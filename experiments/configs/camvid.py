"""CamVid street scenes (240×180, 11 classes) as eleven single-class datasets, 2-D.

Training frames are dealt to the classes in blocks of six consecutive frames, round-robin.

  condseg-train --config=experiments/configs/camvid.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.subvolume = (176, 240)
  config.data.batch_size = 4
  config.data.hold_out = 0.0
  config.augment.update(rotate=5.0, zoom=0.3, shift=0.15, scale=0.3, offset=0.3, gamma=0.3,
                        noise=0.05, mirror=("W",))
  config.conditioning.mechanism = "embedding"
  config.optimizer.learning_rate = 5e-3
  config.model.strides = ((2, 2),) * 4
  config.model.update(depth=(1, 1, 2, 2, 2), channels=8, growth=8)
  config.train.update(steps=1_000, eval_every=500)
  return config
