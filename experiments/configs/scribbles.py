"""Hippocampus from scribbles: strokes in three of ten slices, all other voxels unlabelled.

The masks of the training cases become skeletons of the class, of a band around it and of the
background beyond; those of `val` stay complete. DATA is as for `hippocampus.py`:

  condseg-prepare --format=msd --source=DATA --spacing=1,1,1 --scribbles=0.3 --out=SCRIBBLES
  condseg-train --config=experiments/configs/scribbles.py --config.data.root=SCRIBBLES --workdir=RUN
  condseg-evaluate --workdir=RUN --data=DATA --out=SCORES

The loss covers labelled voxels only, so that nothing else changes (partial cross-entropy as in Tang
et al., CVPR 2018, plus the Dice of these voxels). Every subvolume is centred on the class, where
the strokes are. No case is held out, since it would be scored on strokes. Not run here.
"""

from condseg_jax.configs import hippocampus


def get_config():
  config = hippocampus.get_config()
  config.data.hold_out = 0.0
  config.data.foreground_fraction = 1.0
  return config
