"""BTCV abdomen, 13 organs in 30 CTs, as thirteen single-organ datasets.

Not run here: needs the data (https://www.synapse.org/Synapse:syn3193805, "Beyond the Cranial
Vault", registration required). BTCV holds img/img0001.nii.gz and label/label0001.nii.gz, … as
downloaded; the 20 test images have no labels and are skipped.

  condseg-prepare --format=btcv --source=BTCV --spacing=3,1.5,1.5 --folds=5 --fold=0 \
    --carve=cases --out=DATA
  condseg-train --config=experiments/configs/btcv.py --config.data.root=DATA --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

Of the 30 labelled cases 6 are `val` and stay fully labelled; the other 24 are distributed over the
organs, one or two each: far fewer than under full supervision, where every case shows all 13. For
full supervision, the upper bound, omit --carve=cases and add --config.data.classes_per_image=4.
Nothing is held out of so few cases.

Classes: spleen, kidneys, gallbladder, esophagus, liver, stomach, aorta, inferior vena cava, portal
and splenic vein, pancreas, adrenal glands. Kidneys and adrenal glands are lateralised; nothing
is mirrored, and with `augment.mirror` they are not mirrored along W.
"""

from condseg_jax.configs import base

SIDED = ("right kidney", "left kidney", "right adrenal gland", "left adrenal gland")


def get_config():
  config = base.get_config()
  config.data.spacing = (3.0, 1.5, 1.5)
  config.data.subvolume = (32, 128, 128)
  config.data.batch_size = 4
  config.data.hold_out = 0.0
  config.data.lateral_axes = {name: ("W",) for name in SIDED}
  config.augment.update(probability=0.5, rotate=15.0, zoom=0.15, shift=0.1, scale=0.1, offset=0.1)
  config.model.update(strides=((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
                      layers_per_level=(1, 2, 2, 2, 2), dtype="bfloat16")
  config.conditioning.vector = "embedding"
  config.train.update(steps=20_000, log_every=50, eval_every=2_000)
  return config
