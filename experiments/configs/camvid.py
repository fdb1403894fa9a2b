"""CamVid street scenes (240×180, 11 classes) as eleven single-class datasets, 2-D.

Training frames are assigned to the classes in blocks of six consecutive frames, round-robin, so
that each class has about 33 frames, and every batch holds one frame per class.

DATA holds `train/`, `val/` (images), `trainannot/`, `valannot/` (PNGs of label values) and a
`classes.json`, {"classes": ["sky", …], "ignore": 11}, with names in the order of the values: the
frames of the SegNet tutorial, 480×360, at half size (labels without interpolation).

  condseg-train --config=experiments/configs/camvid.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

Measured in float32 on one CPU core (pinned, other work on the second), 5 minutes: mean IoU over the
101 frames of `val`, intersections and unions pooled over frames, 0.320 (sky 0.903, road 0.858,
pavement 0.487, building 0.389, car 0.346, tree 0.183, sign 0.161, pedestrian 0.150, pole, fence and
bicyclist below 0.02). With group normalisation, as it was before, 0.256 after the same 900 steps.

With --config.train.minutes=30 on one core, in bfloat16, 8,001 steps in 27 minutes: 0.417 (sky
0.935, road 0.941, pavement 0.760, building 0.569, car 0.503, tree 0.486, sign 0.178, pedestrian
0.137, fence 0.037, bicyclist 0.030, pole 0.015). On an accelerator use --config.train.steps=20000,
which was not run here.
"""

from condseg_jax.configs import base


def get_config():
  config = base.get_config()
  config.data.subvolume = (96, 128)
  config.data.batch_size = 11
  config.data.hold_out = 0.0
  config.augment.update(probability=0.3, rotate=5.0, zoom=0.3, shift=0.15, scale=0.3, offset=0.3,
                        gamma=0.3, noise=0.05, mirror=("W",))
  config.model.update(strides=((2, 2),) * 4, layers_per_level=(1, 1, 2, 2, 2))
  config.conditioning.vector = "embedding"
  config.optimizer.learning_rate = 3e-3
  config.train.update(steps=900, eval_every=450)
  return config
