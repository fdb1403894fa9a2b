"""Every setting of a run: type, default, unit and allowed values, validated on construction.

A config file (see `experiments/configs`) returns a nested dict; `Config.from_dict` turns it into
frozen dataclasses or raises a one-line error that names the setting. Functions take these typed
sections. Names of objectives, mechanisms, blocks, networks and augmentations are not listed here:
each is checked against its registry where the part is built.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from condseg_jax import settings
from condseg_jax.errors import InputError
from condseg_jax.former_settings import RENAMED
from condseg_jax.former_settings import upgraded
from condseg_jax.settings import setting

# Version of the settings' names and values, written into checkpoints and bundles; 1 had none.
VERSION = 3


@dataclasses.dataclass(frozen=True)
class Data:
  """What is learned from, and how batches are drawn. Axes are D H W, in 2-D H W."""

  root: str = setting("", "prepared store, raw dataset, or a folder of these")
  cache: str = setting("", "folder for what is prepared of raw data; the user's cache when empty")
  spacing: tuple[float, ...] = setting(
      (), "mm per voxel and axis; the median of the training cases when empty", low=1e-4, high=1e3)
  plan: str = setting(
      "config", "auto: subvolume and model.strides are fitted to the data and memory_gb",
      choices=("config", "auto"))
  memory_gb: float = setting(8.0, "GB for a step on one device, which plan auto keeps to", above=0)
  subvolume: tuple[int, ...] = setting(
      (32, 64, 64), "voxels: the network's input and the window of prediction", low=1, high=2**15)
  batch_size: int = setting(2, "images per step over all devices", low=1, high=2**30)
  batch_class: str = setting(
      "mixed", "single: one class per batch, as in the paper", choices=("mixed", "single"))
  foreground_fraction: float = setting(
      1 / 3, "share of the subvolumes that are centred on a voxel of the class", low=0, high=1)
  classes_per_image: int = setting(
      1, "classes decoded per image, at most; 0 for all that a dataset annotates", low=0,
      high=2**16)
  weights: tuple[float, ...] = setting(
      (), "sampling weight of every dataset; equal when empty", above=0)
  hold_out: float = setting(
      0.1, "share of every training dataset, by patient, kept for periodic scores and the best "
      "checkpoint",
      low=0, below=1)
  classes: tuple[str, ...] = setting(
      (), "classes in the order of their ids; in order of appearance when empty")
  include_classes: tuple[str, ...] = setting(
      (), "the classes to learn; all that a dataset annotates when empty")
  max_cases: int = setting(
      0, "cases of every training dataset, at most; 0 for all", low=0, high=2**31 - 1)
  unannotated: str = setting(
      "ignore", "how a class without a mask counts: ignore, not at all; background, as absent",
      choices=("ignore", "background"))
  presets: Mapping[str, tuple[str, ...]] = setting({}, "named groups of classes")
  lateral_axes: Mapping[str, tuple[str, ...]] = setting(
      {}, "class → axes along which it must not be mirrored, because it has sides",
      choices=("D", "H", "W"))
  bare: float = setting(
      0.0, "sampling weight of every dataset without any mask; 0 leaves them out", low=0, high=1e6)
  pseudo_weight: float = setting(
      0.5, "weight β of pseudo-masks, where a store has any; true masks have 1; 0 leaves them out",
      low=0, below=1)
  overlapping: tuple[tuple[str, ...], ...] = setting(
      (), "pairs of classes that a voxel may both belong to, besides those whose masks overlap")


@dataclasses.dataclass(frozen=True)
class Augment:
  """Ranges of the augmentation; 0 switches a transformation off (see `train.augment`)."""

  probability: float = setting(
      0.5, "with which each transformation is applied to a sample", low=0, high=1)
  rotate: float = setting(15.0, "largest rotation about every axis, degrees", low=0, high=180)
  zoom: float = setting(
      0.15, "largest relative change of size: 0.2 for 1/1.2 to 1.2", low=0, high=10)
  shift: float = setting(
      0.1, "largest shift along every axis, share of the subvolume", low=0, high=1)
  scale: float = setting(0.2, "largest relative change of contrast", low=0, high=10)
  offset: float = setting(
      0.2, "largest change of brightness, units of the normalised image", low=0, high=100)
  gamma: float = setting(0.2, "largest change of log gamma", low=0, high=10)
  noise: float = setting(
      0.1, "largest standard deviation of added noise, units of the normalised image", low=0,
      high=100)
  blur: float = setting(
      0.0, "largest standard deviation of a Gaussian blur, voxels", low=0, high=100)
  low_resolution: float = setting(
      0.0, "largest loss of resolution: 1.0 for every second voxel along every axis", low=0,
      high=100)
  cutmix: float = setting(
      0.0, "probability that a box of an image, with all that is known there, is taken from one of "
      "another dataset", low=0, high=1)
  mirror: tuple[str, ...] = setting(
      (), "axes that are flipped with probability 1/2", choices=("D", "H", "W"))
  extra: Mapping[str, float] = setting(
      {}, "range of further entries of `train.augment.AUGMENTATIONS`, by name", low=0)


@dataclasses.dataclass(frozen=True)
class Model:
  """The network. Levels are listed finest first."""

  network: str = setting("dense_unet", "a name in `models.build.NETWORKS`")
  strides: tuple[tuple[int, ...], ...] = setting(
      ((2, 2, 2),) * 3, "pooling between levels, one stride per axis", low=1, high=64, least=1)
  layers_per_level: tuple[int, ...] = setting(
      (1, 2, 2, 2), "layers in every block; in res_unet residual units of the encoder, in "
      "plain_unet its layers, of which the stem is the first", low=0, high=64)
  decoder_layers_per_level: tuple[int, ...] | None = setting(
      None, "layers in the decoder; when None as layers_per_level, in res_unet and "
      "plain_unet 1", low=0, high=64)
  channels: int = setting(
      16, "features of the finest level; level l has (l + 1) times as many, in res_unet and "
      "plain_unet 2^l times, up to max_channels", low=1, high=4096)
  max_channels: int = setting(
      320, "largest number of features of a level of res_unet and plain_unet", low=1, high=4096)
  growth: int = setting(16, "channels of a dense layer at the finest level", low=1, high=4096)
  encoder_block: str = setting("dense", "a name in `models.blocks.BLOCKS`")
  decoder_block: str = setting("dense", "a name in `models.blocks.BLOCKS`")
  decoder: str = setting("unet", "fcn and deeplab are decoders without class conditioning",
                          choices=("unet", "fcn", "deeplab"))
  rates: tuple[int, ...] = setting(
      (6, 12, 18), "dilation rates of the pyramid of deeplab", low=1, high=1024, least=1)
  norm: str = setting("instance", "normalisation", choices=("group", "instance", "none"))
  activation: str = setting("leaky_relu", "a name in `models.layers.ACTIVATIONS`")
  dtype: str = setting("auto", "of the computation, parameters are float32; auto: bfloat16 where "
                        "this machine is faster in it", choices=("auto", "float32", "bfloat16"))
  deep_supervision: int = setting(
      0, "coarser decoder levels that are supervised too", low=0, high=64)
  remat: bool = setting(
      False, "recompute blocks in the backward pass: less memory on accelerators")


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """How the network is conditioned on the class."""

  position: str = setting(
      "decoder", "where the class enters (see `models.dense_unet`)",
      choices=("none", "input", "encoder", "decoder", "output_head", "per_class_decoders"))
  mechanism: str = setting("channel", "how: a name in `models.conditioning.MECHANISMS`")
  vector: str = setting("hash", "what represents a class",
                         choices=("hash", "one_hot", "embedding", "text"))
  text_vectors: str = setting("", "for vector text: JSON file {class: [numbers]}")
  texts: tuple[tuple[float, ...], ...] = setting(
      (), "the vectors of text_vectors in the order of the ids; filled in when a run begins")
  embedding_size: int = setting(8, "length of a learned vector", low=1, high=4096)
  from_level: int | None = setting(
      None, "coarsest decoder level that sees the class; all levels when None", low=0, high=64)


@dataclasses.dataclass(frozen=True)
class Loss:
  """The objective."""

  objective: str = setting("dice_bce", "a name in `losses.OBJECTIVES`")
  bce_weight: float = setting(
      1.0, "weight of the cross-entropy beside the Dice; 0 for Dice alone", low=0, high=1e6)
  lse_sharpness: float = setting(
      5.0, "for image_level: sharpness r of the log-sum-exp maximum over voxels", above=0,
      high=1e6)
  alpha: Mapping[str, float] = setting({}, "weight of a class; 1 where not named", low=0, high=1e6)
  options: Mapping[str, float] = setting({}, "numbers that an objective of one's own reads")
  exclusion_classes: int = setting(
      0, "further classes decoded per image: negative where a class is annotated that excludes "
      "them, else unlabelled; 0 for none", low=0, high=2**16)
  exclusion_weight: float = setting(
      0.1, "weight of the cross-entropy of these classes; 0 for none", low=0, high=1e6)

  @property
  def further(self) -> int:
    """The further classes that are decoded per image: none without a weight."""
    return self.exclusion_classes if self.exclusion_weight else 0


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The update rule and the schedule of its learning rate."""

  name: str = setting("adam", "update rule", choices=("adam", "adamw", "sgd"))
  learning_rate: float = setting(2e-3, "after warm-up", above=0, high=100)
  schedule: str = setting("cosine", "decay to 0 over train.steps; polynomial is (1 - t)^0.9",
                           choices=("constant", "cosine", "polynomial"))
  warmup: int = setting(20, "steps of linear warm-up", low=0, high=2**31 - 1)
  b1: float = setting(0.9, "decay of the first moment", low=0, below=1)
  b2: float = setting(0.999, "decay of the second moment", low=0, below=1)
  weight_decay: float = setting(0.0, "of adamw", low=0, high=100)
  momentum: float = setting(0.9, "of sgd (Nesterov)", low=0, below=1)
  clip_norm: float = setting(1.0, "largest global gradient norm; 0 for no limit", low=0)


@dataclasses.dataclass(frozen=True)
class Train:
  """The run."""

  steps: int = setting(1000, "length of the run", low=1, high=2**31 - 1)
  minutes: float = setting(
      0.0, "length of the run; fixes steps when it begins, by timing a few; 0 for steps as given",
      low=0)
  driver: str = setting("jit", "how a step is spread over devices", choices=("jit", "pmap"))
  ema_decay: float = setting(
      0.0, "decay of the moving average of the parameters; 0 for none", low=0, below=1)
  log_every: int = setting(10, "steps between lines of the log", low=1, high=2**31 - 1)
  eval_every: int = setting(250, "steps between scores on held-out cases and checkpoints", low=1)
  grad_accum_steps: int = setting(
      1, "parts of a batch that are computed one after the other: less memory, the same step",
      low=1)
  partition: int = setting(
      1, "devices that a subvolume is split over along its first axis; 0 for as few as "
      "data.memory_gb needs", low=0, high=2**16)
  only_classes: tuple[str, ...] = setting(
      (), "classes of which the own parameters are learned, such as their vectors or decoders; all "
      "else stays as it began; everything is learned when empty")


@dataclasses.dataclass(frozen=True)
class Init:
  """What the parameters start from (see `train.start`)."""

  source: str = setting(
      "", "workdir of a run, or a bundle, that a new run starts from; random when empty")
  what: str = setting(
      "all", "encoder: only its parameters; all: also decoder, and classes by name; grow: all, and "
      "classes without new data remain", choices=("all", "encoder", "grow"))


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run."""

  seed: int = setting(
      0, "of initialisation, sampling and augmentation", low=0, high=2**32 - 1)
  data: Data = dataclasses.field(default_factory=Data)
  augment: Augment = dataclasses.field(default_factory=Augment)
  model: Model = dataclasses.field(default_factory=Model)
  conditioning: Conditioning = dataclasses.field(default_factory=Conditioning)
  loss: Loss = dataclasses.field(default_factory=Loss)
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  train: Train = dataclasses.field(default_factory=Train)
  init: Init = dataclasses.field(default_factory=Init)

  @classmethod
  def from_dict(cls, tree: Mapping[str, Any], version: int = VERSION) -> "Config":
    """Returns a validated config; missing settings get their defaults.

    Args:
      tree: nested dict; lists are accepted for tuples, whole numbers for floats.
      version: version of the setting names; older names are translated.

    Raises:
      InputError: an unknown setting, a value of the wrong type or out of range, or mutually
        exclusive settings.
    """
    config = settings.build(cls, upgraded(tree) if version < VERSION else tree, RENAMED)
    _check_together(config)
    return config

  def to_dict(self) -> dict[str, Any]:
    """Returns plain dicts, lists and scalars that survive a JSON round trip."""
    return settings.plain(self)

  def override(self, changes: Mapping[str, Any]) -> "Config":
    """Returns a validated copy with changes: `config.override({"data.batch_size": 4, "seed": 1})`.

    Args:
      changes: dotted name of a setting → its value; a dict is replaced as a whole.

    Raises:
      InputError: see `from_dict`.
    """
    tree = self.to_dict()
    for name, value in changes.items():
      section, _, key = name.rpartition(".")
      if section and not isinstance(tree.get(section), dict):
        raise unknown_setting(name)
      (tree[section] if section else tree)[key] = value
    return Config.from_dict(tree)

  def to_config_dict(self):
    """Returns a locked `ml_collections.ConfigDict` for config files to modify."""
    import ml_collections
    from ml_collections import config_dict

    def part(section) -> ml_collections.ConfigDict:
      out = ml_collections.ConfigDict()
      for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
          value = part(value)
        elif isinstance(value, Mapping):
          value = ml_collections.ConfigDict(dict(value))
        elif value is None:
          value = config_dict.placeholder(settings.optional_type(type(section), field.name))
        out[field.name] = value
      return out

    config = part(self).lock()
    for name, default, _ in settings.walk(Config):
      if isinstance(default, Mapping):  # its keys are the user's own
        section, _, key = name.partition(".")
        config[section][key].unlock()
    return config


def unknown_setting(name: str) -> InputError:
  """Returns the error for an unknown setting, suggesting the closest known one."""
  return settings.unknown(name, Config, RENAMED)


def _check_together(config: Config) -> None:
  """Raises InputError for settings that are valid on their own but mutually exclusive."""
  data, model = config.data, config.model

  def exclude(name: str, reason: str, cure: str) -> None:
    raise InputError(name, reason, cure, usage=True)

  if len(model.layers_per_level) != len(model.strides) + 1:
    exclude("model.layers_per_level", f"has {len(model.layers_per_level)} levels, model.strides "
            f"joins {len(model.strides) + 1}", "give one number of layers for every level")
  if {len(level) for level in model.strides} not in ({2}, {3}):
    exclude("model.strides", f"{model.strides} does not have 2 axes throughout, or 3",
            "give one stride per axis of the images")
  axes = len(model.strides[0])
  for name, value in (("data.subvolume", data.subvolume),
                      ("data.spacing", data.spacing or (0,) * axes)):
    if data.plan == "config" and len(value) != axes:
      exclude(name, f"has {len(value)} axes, model.strides {axes}",
              "give one number per axis of the images")
  if data.plan == "config":
    stride = [math.prod(level[axis] for level in model.strides) for axis in range(axes)]
    if any(n % s for n, s in zip(data.subvolume, stride, strict=True)):
      exclude("data.subvolume", f"{data.subvolume} is not a multiple of the network's stride "
              f"{tuple(stride)}", "choose a multiple along every axis")
  if data.batch_class == "single" and data.classes_per_image > 1:
    exclude("data.classes_per_image", f"{data.classes_per_image} excludes data.batch_class "
            "'single'", "decode 1 class per image, or use batch_class 'mixed'")
  if config.augment.cutmix and (data.batch_class == "single" or data.batch_size < 2):
    exclude("augment.cutmix", "needs images of several datasets in a batch",
            "use data.batch_class 'mixed' and a data.batch_size of 2 or more")
  if data.bare and data.batch_class == "single":
    exclude("data.bare", "needs batches of all datasets", "use data.batch_class 'mixed'")
  for pair in data.overlapping:
    if len(pair) != 2:
      exclude("data.overlapping", f"{pair} is not a pair", "name two classes in every pair")
  if data.bare and data.unannotated == "background":
    exclude("data.bare", "would count every class as absent in images without masks",
            "use data.unannotated 'ignore', or set data.bare to 0")
  if config.train.partition != 1 and config.train.driver != "jit":
    exclude("train.partition", "needs one program for all devices", "use train.driver 'jit'")
  if config.train.partition != 1 and config.train.only_classes:
    exclude("train.partition", "excludes train.only_classes", "use 1, or leave only_classes empty")
  if config.train.partition != 1 and data.plan == "auto":
    exclude("train.partition", "excludes data.plan 'auto', which fits a subvolume to one device",
            "give data.subvolume with data.plan 'config'")
  if data.batch_size % config.train.grad_accum_steps:
    exclude("train.grad_accum_steps", f"{config.train.grad_accum_steps} does not divide "
            f"data.batch_size {data.batch_size}", "choose a divisor")
  if config.conditioning.text_vectors and config.conditioning.vector != "text":
    exclude("conditioning.text_vectors", "has no effect unless conditioning.vector is 'text'",
            "set conditioning.vector to 'text', or leave text_vectors empty")
