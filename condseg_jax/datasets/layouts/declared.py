"""What the `dataset.json` of MSD and of nnU-Net say alike."""

from collections.abc import Mapping
from pathlib import Path

from condseg_jax.classes import normal_name
from condseg_jax.errors import InputError

MODALITIES = {"ct": "ct", "mri": "mr", "mr": "mr", "t1": "mr", "t2": "mr", "rgb": "rgb"}


def modality_of(path: Path, tree: Mapping) -> str:
  """`ct`, `mr` or `rgb`, from "modality" (MSD) or "channel_names" (nnU-Net).

  Raises:
    InputError: several channels that are no colours, or an unknown one.
  """
  channels = tree.get("modality") or tree.get("channel_names") or {}
  if not isinstance(channels, dict):
    raise InputError(path, f"modality {channels!r}", 'write {"0": "CT"}')
  names = [str(name).strip().lower() for name in channels.values()]
  if names in (["r", "g", "b"], ["red", "green", "blue"]):
    return "rgb"
  if len(names) != 1:
    raise InputError(path, f"{len(names)} channels", "give images of one channel, and name it "
                     'in "modality": {"0": "CT"}')
  if names[0] not in MODALITIES:
    raise InputError(path, f"modality {names[0]!r} is not known",
                     f"one of {', '.join(sorted(MODALITIES))}")
  return MODALITIES[names[0]]


def void_values(labels: Mapping[int, str]) -> list[int]:
  """The values of voxels that nobody annotated, which nnU-Net calls `ignore`."""
  return [value for value, name in labels.items() if normal_name(name) == "ignore"]
