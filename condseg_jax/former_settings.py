"""How settings of older checkpoints and bundles are read: what has been renamed, and what added."""

from collections.abc import Mapping
from typing import Any

# Settings and values renamed since version 1 → the present name.
RENAMED = {
    "data.keep": "data.include_classes",
    "data.cases": "data.max_cases",
    "data.foreground": "data.foreground_fraction",
    "data.unlabelled": "data.unannotated",
    "data.no_mirror": "data.lateral_axes",
    "model.depth": "model.layers_per_level",
    "model.decoder_depth": "model.decoder_layers_per_level",
    "loss.supervision": "loss.objective",
    "loss.sharpness": "loss.lse_sharpness",
    "train.accumulate": "train.grad_accum_steps",
}
RENAMED_VALUES = {
    "conditioning.position": {"head": "output_head", "decoders": "per_class_decoders"},
    "data.unannotated": {"ignored": "ignore"},
    "loss.objective": {"voxels": "dice_bce", "image": "image_level"},
}


# Settings added since version 1, with the value that leaves everything as it was before.
ADDED = {"model.network": "dense_unet", "conditioning.texts": [], "augment.extra": {},
         "loss.options": {}, "train.minutes": 0.0, "augment.blur": 0.0,
         "augment.low_resolution": 0.0, "data.overlapping": [], "data.bare": 0.0,
         "augment.cutmix": 0.0, "loss.exclusion_classes": 0, "loss.exclusion_weight": 0.1,
         "data.pseudo_weight": 0.5,
         "model.max_channels": 320, "init.source": "", "init.what": "all",
         "train.only_classes": [], "train.partition": 1}


def upgraded(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns settings of an older version under the current names, with those added since.

  Args:
    tree: nested dict, section → setting → value.
  """
  out: dict[str, Any] = {}
  for section, part in tree.items():
    if not isinstance(part, Mapping):
      out[section] = part
      continue
    out[section] = {}
    for key, value in part.items():
      name = RENAMED.get(f"{section}.{key}", f"{section}.{key}")
      if isinstance(value, str):
        value = RENAMED_VALUES.get(name, {}).get(value, value)
      out[section][name.partition(".")[2]] = value
  for name, value in ADDED.items():
    section, _, key = name.partition(".")
    out.setdefault(section, {}).setdefault(key, value)
  return out
