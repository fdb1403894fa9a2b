"""Reads what nnU-Net v2 recorded about a trained network: dataset.json and plans.json."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any
from typing import NamedTuple

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.plan import Plan

NETWORKS = {"PlainConvUNet": "plain_unet", "ResidualEncoderUNet": "res_unet"}
ACTIVATIONS = {"LeakyReLU": "leaky_relu", "ReLU": "relu"}
# Normalisation of the intensities → modality of a plan that computes the same.
NORMALISATIONS = {"CTNormalization": "ct", "ZScoreNormalization": "mr"}
EPSILON = 1e-5  # of torch's instance normalisation
_UNKNOWN = "only networks as nnU-Net v2 plans them can be imported"


class Planned(NamedTuple):
  """A configuration of nnU-Net.

  Attributes:
    network: the network of `models.build` that it is.
    kernels: kernel size of every level, finest first.
    strides: strides of the levels below the finest, finest first.
    features: features of every level.
    layers: convolutions or residual units of every level of the encoder.
    activation: a name in `models.layers.ACTIVATIONS`.
    epsilon: added to the variance in the normalisation.
    plan: spacing, patch and intensities.
    order: its axes, by their place among those of an image D H W (in 2-D H W): nnU-Net transposes
      images, so that slices lie along the first axis.
    masked: whether statistics of intensities were those of non-zero voxels alone.
    classes: names of the classes.
    dataset: name of the dataset.
  """

  network: str
  kernels: tuple[tuple[int, ...], ...]
  strides: tuple[tuple[int, ...], ...]
  features: tuple[int, ...]
  layers: tuple[int, ...]
  activation: str
  epsilon: float
  plan: Plan
  order: tuple[int, ...]
  masked: bool
  classes: tuple[str, ...]
  dataset: str


def read_planned(folder: epath.Path, configuration: str) -> Planned:
  """Reads a configuration from the folder of a trained network.

  Args:
    folder: with dataset.json and plans.json.
    configuration: its name, e.g. `3d_fullres`.

  Raises:
    InputError: a file is missing or damaged, or describes a network that has no counterpart here.
  """
  plans, dataset = (_read(folder / name) for name in ("plans.json", "dataset.json"))
  path = folder / "plans.json"
  try:
    return _planned(path, plans, dataset, _resolved(plans["configurations"], configuration))
  except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
    if isinstance(error, InputError):
      raise
    fault = str(error) or type(error).__name__
    raise InputError(path, f"lacks or misstates {fault} (configuration {configuration})",
                     _UNKNOWN) from error


def _planned(path: epath.Path, plans: Mapping[str, Any], dataset: Mapping[str, Any],
             entry: Mapping[str, Any]) -> Planned:
  name, settings = _architecture(entry)
  if name not in NETWORKS:
    raise InputError(path, f"its network is {name}", f"known are {', '.join(NETWORKS)}")
  axes = len(entry["patch_size"])
  _check_layers(path, settings)
  sizes = [tuple(_per_axis(level, axes)) for level in settings["kernel_sizes"]]
  first, *strides = (tuple(_per_axis(level, axes)) for level in settings["strides"])
  if set(first) != {1}:
    raise InputError(path, f"its first level has strides {first}", _UNKNOWN)
  features = tuple(map(int, settings["features_per_stage"]))
  if list(features) != [min(features[0] * 2 ** i, max(features)) for i in range(len(features))]:
    raise InputError(path, f"its levels have {features} features, which are not doubled up to a "
                     "limit", _UNKNOWN)
  counts = settings.get("n_conv_per_stage", settings.get("n_blocks_per_stage"))
  kept = plans.get("transpose_forward", [0, 1, 2])[-axes:]
  order = tuple(sorted(range(axes), key=lambda i: kept[i]))
  if not len(sizes) == len(features) == len(strides) + 1:
    raise ValueError("the number of levels")
  plan, masked = _plan(path, plans, entry, order)
  kwargs = settings.get("nonlin_kwargs") or {}
  if kwargs.get("negative_slope", 0.01) != 0.01:
    raise InputError(path, f"its activation has the slope {kwargs['negative_slope']}", _UNKNOWN)
  return Planned(
      NETWORKS[name], tuple(sizes), tuple(strides), features,
      (int(counts),) * len(features) if isinstance(counts, int) else tuple(map(int, counts)),
      ACTIVATIONS[_last(settings["nonlin"])],
      float((settings.get("norm_op_kwargs") or {}).get("eps", EPSILON)), plan, order, masked,
      tuple(n for n in map(str, dataset["labels"]) if n not in ("background", "ignore")),
      str(plans.get("dataset_name", "")))


def _check_layers(path: epath.Path, settings: Mapping[str, Any]) -> None:
  """Raises InputError for layers that our networks do not have."""
  if "InstanceNorm" not in str(settings["norm_op"]) or not (
      settings.get("norm_op_kwargs") or {}).get("affine", False):
    raise InputError(path, f"its normalisation is {_last(settings['norm_op'])}, with "
                     f"{settings.get('norm_op_kwargs')}", "known is the affine instance norm")
  for key in ("nonlin_first", "block", "bottleneck_channels", "stem_channels",
              "squeeze_excitation"):
    value = settings.get(key)
    if value and _last(value) != "BasicBlockD" and value != settings["features_per_stage"][0]:
      raise InputError(path, f"its network has {key} {value}", _UNKNOWN)
  if _last(settings["nonlin"]) not in ACTIVATIONS:
    raise InputError(path, f"its activation is {settings['nonlin']}",
                     f"known are {', '.join(ACTIVATIONS)}")
  odd = {size for level in settings["kernel_sizes"] for size in _per_axis(level, 1)} - {1, 3}
  if odd:
    raise InputError(path, f"its kernels have the size {max(odd)}", "known are 1 and 3")


def _architecture(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
  """Returns class and settings of the network, also of plans before version 2.5 of nnU-Net."""
  if "architecture" in entry:
    found = entry["architecture"]
    return _last(found["network_class_name"]), found["arch_kwargs"]
  counts = entry["n_conv_per_stage_encoder"]
  base, most = entry["UNet_base_num_features"], entry["unet_max_num_features"]
  return entry["UNet_class_name"], {
      "features_per_stage": [min(base * 2 ** i, most) for i in range(len(counts))],
      "kernel_sizes": entry["conv_kernel_sizes"], "strides": entry["pool_op_kernel_sizes"],
      "n_conv_per_stage": counts, "norm_op": "InstanceNorm",
      "norm_op_kwargs": {"eps": EPSILON, "affine": True}, "nonlin": "LeakyReLU"}


def _plan(path: epath.Path, plans: Mapping[str, Any], entry: Mapping[str, Any],
          order: Sequence[int]) -> tuple[Plan, bool]:
  schemes = entry["normalization_schemes"]
  if len(schemes) != 1:
    raise InputError(path, f"its images have {len(schemes)} channels",
                     "networks with one channel can be imported")
  modality = NORMALISATIONS.get(schemes[0])
  if modality is None:
    raise InputError(path, f"its intensities are normalised by {schemes[0]}",
                     f"known are {', '.join(NORMALISATIONS)}")
  spacing, patch = ([entry[key][-len(order):][i] for i in order]
                    for key in ("spacing", "patch_size"))
  intensities: dict[str, float] = {}
  if modality == "ct":
    found = plans.get("foreground_intensity_properties_per_channel",
                      plans.get("foreground_intensity_properties_by_modality"))["0"]
    intensities = {ours: float(found[theirs]) for ours, theirs in (
        ("low", "percentile_00_5"), ("high", "percentile_99_5"), ("mean", "mean"), ("sd", "std"))}
  masked = modality == "mr" and bool((entry.get("use_mask_for_norm") or [False])[0])
  return Plan(modality, tuple(map(float, spacing)), tuple(map(int, patch)), **intensities), masked


def _resolved(configurations: Mapping[str, Any], name: str,
              seen: tuple[str, ...] = ()) -> dict[str, Any]:
  """Returns a configuration with what it inherits."""
  if name not in configurations:
    raise ValueError(f"the configuration {name}, of {', '.join(map(str, configurations))}")
  entry = configurations[name]
  parent = entry.get("inherits_from")
  if parent is None:
    return dict(entry)
  if name in seen:
    raise ValueError("inherits_from, which is a circle")
  return {**_resolved(configurations, parent, (*seen, name)), **entry}


def _read(path: epath.Path) -> dict[str, Any]:
  try:
    tree = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    reason = getattr(error, "strerror", None) or error
    raise InputError(path, f"cannot be read ({reason})",
                     "name the folder with dataset.json, plans.json and fold_*") from error
  if not isinstance(tree, dict):
    raise InputError(path, "is not a JSON object", "restore it from a copy")
  return tree


def _last(name: Any) -> str:
  return str(name).rpartition(".")[2]


def _per_axis(value: Any, axes: int) -> list[int]:
  return [int(v) for v in value] if isinstance(value, list) else [int(value)] * axes
