"""Every setting and its default. The other configs import this one and change a few fields.

Not an experiment: `data.root` is empty. To see what a run used, read WORKDIR/run.json.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0

  # What is learned from. `root` is a prepared store, a raw dataset, or a folder of these.
  config.data = ml_collections.ConfigDict(dict(
      root="",
      cache="",  # where raw data is prepared; the user's cache folder when empty
      spacing=(),  # D H W in mm; the median of the training cases when empty
      plan="config",  # or auto: subvolume and model.strides as the data and memory_gb allow
      memory_gb=8.0,  # for a step on one device; plan auto keeps to it
      subvolume=(32, 64, 64),  # D H W in voxels: the network's input and the window of prediction
      batch_size=2,  # over all devices
      batch_class="mixed",  # or single: one class per batch, as in the paper
      foreground=1 / 3,  # part of the subvolumes that are centred on the class
      classes_per_image=1,  # decodes per image, at most; 0: all that a dataset annotates
      weights=(),  # one per dataset; equal when empty
      hold_out=0.1,  # of every training dataset, for periodic scores and the best checkpoint
      classes=(),  # order of the ids; order of appearance when empty
      keep=(),  # the classes to learn; all that a dataset annotates when empty
      cases=0,  # of every training dataset, at most; 0 for all
      unlabelled="ignored",  # or background: classes without a mask count as absent
  ))
  config.data.presets = ml_collections.ConfigDict()  # name of a group = ("class", …)
  config.data.no_mirror = ml_collections.ConfigDict()  # class = ("W",) where it has sides

  # Ranges of condseg_jax.train.augment.Augmentation.
  config.augment = ml_collections.ConfigDict(dict(
      probability=0.5, rotate=15.0, zoom=0.15, shift=0.1, scale=0.2, offset=0.2, gamma=0.2,
      noise=0.1, mirror=()))

  # Fields of condseg_jax.models.dense_unet.DenseUNet, finest level first.
  config.model = ml_collections.ConfigDict(dict(
      strides=((2, 2, 2), (2, 2, 2), (2, 2, 2)), depth=(1, 2, 2, 2), channels=16, growth=16,
      encoder_block="dense", decoder_block="dense",  # or residual, plain
      decoder="unet",  # or fcn, deeplab: for position none, input, encoder or head
      rates=(6, 12, 18),  # of the pyramid of deeplab
      norm="group", activation="leaky_relu", dtype="float32",
      decoder_depth=config_dict.placeholder(tuple),  # as depth where it is None
      deep_supervision=0,  # coarser decoder levels that are scored too
      remat=False))  # compute blocks again in the gradient: less memory on accelerators
  config.conditioning = ml_collections.ConfigDict(dict(
      position="decoder",  # where: none | input | encoder | decoder | head | decoders
      mechanism="channel",  # how: a name in condseg_jax.models.conditioning.MECHANISMS
      vector="hash",  # what stands for a class: hash | one_hot | embedding | text
      text_vectors="",  # for text: JSON file, {class: [numbers]}
      embedding_size=8,
      from_level=config_dict.placeholder(int)))

  config.loss = ml_collections.ConfigDict(dict(
      bce_weight=1.0,
      supervision="voxels",  # or image: a mask says whether the class is in the subvolume at all
      sharpness=5.0))  # for image: of the maximum over its voxels
  config.loss.alpha = ml_collections.ConfigDict()  # class = weight; 1 where not named

  config.optimizer = ml_collections.ConfigDict(dict(
      name="adam", learning_rate=2e-3, schedule="cosine", warmup=20, b1=0.9, b2=0.999,
      weight_decay=0.0, momentum=0.9, clip_norm=1.0))
  config.train = ml_collections.ConfigDict(dict(
      steps=1000, driver="jit", ema_decay=0.0, log_every=10, eval_every=250,
      accumulate=1))  # parts of a batch, one after the other: less memory, the same step
  return config
