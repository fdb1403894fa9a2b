"""Turns the encoder of a network trained by nnU-Net v2 into one of `models.res_unet`.

The same image gives the same features. Three things differ, and none of them by what it computes:

* A bias before an instance normalisation has no effect, and there is none here.
* nnU-Net adds 1e-5 to a variance, `layers.Norm` 1e-6: kernels are multiplied by √(1e-6 / 1e-5),
  which scales the variance by the same ratio.
* A kernel of size 1 along an axis becomes one of size 3 with zeros around it.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import os
from typing import Any
from typing import NamedTuple

from etils import epath
from flax import traverse_util
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.nnunet.plans import Planned
from condseg_jax.model_io.nnunet.plans import read_planned
from condseg_jax.model_io.nnunet.torch_file import open_torch_file
from condseg_jax.model_io.nnunet.torch_file import Tensor
from condseg_jax.model_io.nnunet.torch_file import TorchFile
from condseg_jax.model_io.record import ModelRecord

CHECKPOINT = "checkpoint_final.pth"
EPSILON = 1e-6  # of `layers.Norm`


class Place(NamedTuple):
  """One layer, convolution and normalisation, in both networks.

  Attributes:
    ours: path of the layer in the parameters.
    theirs: prefix of its weights in the checkpoint.
    level: level of the encoder.
    shortcut: whether it is the projection of a residual unit, whose kernel has size 1.
  """

  ours: str
  theirs: str
  level: int
  shortcut: bool = False


def import_encoder(folder: str | os.PathLike, fold: str = "") -> Bundle:
  """Reads the encoder of a trained network as a bundle that holds an encoder alone.

  Args:
    folder: with dataset.json, plans.json and fold_*/checkpoint_final.pth, as nnU-Net leaves it.
    fold: number of a fold, or `all`; the first one there is when empty.

  Raises:
    InputError: a file is missing, damaged or contains code, or the network has no counterpart here.
  """
  root = epath.Path(folder)
  path = _checkpoint(root, fold)
  with open_torch_file(path) as file:
    weights = file.tree.get("network_weights") if isinstance(file.tree, dict) else None
    if not isinstance(weights, dict):
      raise InputError(path, "holds no network_weights", "name a checkpoint of nnU-Net v2")
    planned = read_planned(root, _configuration(root, file.tree))
    params = _params(file, path, weights, planned)
  record = _record(path, planned)
  origin = {"software": "nnU-Net v2", "dataset": planned.dataset, "folder": root.name,
            "checkpoint": f"{path.parent.name}/{path.name}",
            "intensities": "of non-zero voxels alone" if planned.masked else "of whole images"}
  return Bundle(record, params, {"step": 0, "part": "encoder", "origin": origin})


def settings_to_train(record: ModelRecord) -> dict[str, Any]:
  """Returns the settings with which a network has such an encoder: dotted name → value."""
  changed, default = record.config.to_dict(), Config().to_dict()
  return {"data.spacing": record.config.data.spacing,
          "data.subvolume": record.config.data.subvolume,
          **{f"model.{key}": getattr(record.config.model, key)
             for key, value in changed["model"].items() if value != default["model"][key]}}


# --- the checkpoint -------------------------------------------------------------------------------
def _checkpoint(root: epath.Path, fold: str) -> epath.Path:
  if not root.is_dir():
    raise InputError(root, "is not a folder", "name the folder with plans.json and fold_*")
  folds = sorted(p.name for p in root.glob("fold_*") if (p / CHECKPOINT).exists())
  name = f"fold_{fold}" if fold else next(iter(folds), "")
  if name not in folds:
    raise InputError(root, f"has no {name or 'fold_*'}/{CHECKPOINT}",
                     f"there are: {', '.join(folds) or 'none'}; name a folder of nnU-Net v2")
  return root / name / CHECKPOINT


def _configuration(root: epath.Path, tree: Mapping[str, Any]) -> str:
  """Returns the configuration, from the checkpoint or else from the name of the folder."""
  arguments = tree.get("init_args")
  if isinstance(arguments, dict) and isinstance(arguments.get("configuration"), str):
    return arguments["configuration"]
  return root.name.rpartition("__")[2]


# --- the parameters -------------------------------------------------------------------------------
def places(planned: Planned) -> Iterator[Place]:
  """Yields the layers of the encoder in the order of computation."""
  residual = planned.network == "res_unet"
  if residual:
    yield Place("stem", "encoder.stem.convs.0", 0)
  before = planned.features[0]
  for level, (count, features) in enumerate(zip(planned.layers, planned.features, strict=True)):
    stage = f"encoder.stages.{level}"
    strided = level > 0 and set(planned.strides[level - 1]) != {1}
    for i in range(count):
      if not residual:
        # The stem is the first layer, and level 0 begins with the second.
        ours = "stem" if (level, i) == (0, 0) else f"down_{level}/layer_{i - (level == 0)}"
        yield Place(ours, f"{stage}.0.convs.{i}", level)
        continue
      for j in (0, 1):
        yield Place(f"down_{level}/unit_{i}/layer_{j}", f"{stage}.blocks.{i}.conv{j + 1}", level)
      if i == 0 and before != features:
        # After the pooling of a strided unit.
        yield Place(f"down_{level}/unit_0/projection", f"{stage}.blocks.0.skip.{int(strided)}",
                    level, True)
    before = features


def _params(file: TorchFile, path: epath.Path, weights: Mapping[str, Any],
            planned: Planned) -> dict[str, Any]:
  # Of distributed and of compiled training.
  weights = {str(key).removeprefix("module.").removeprefix("_orig_mod."): value
             for key, value in weights.items()}

  def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
    tensor = weights.get(name)
    if not isinstance(tensor, Tensor):
      raise InputError(path, f"has no {name}", "it is not of the network in plans.json")
    if tensor.shape != shape:
      raise InputError(path, f"{name} has the shape {tensor.shape}, plans.json gives {shape}",
                       "the two files are not of one training")
    array = file.array(tensor).astype(np.float32)
    if not np.isfinite(array).all():
      raise InputError(path, f"{name} contains NaN or Inf", "use another checkpoint")
    return array

  flat, channels = {}, planned.plan.channels
  for place in places(planned):
    size = (1,) * len(planned.order) if place.shortcut else planned.kernels[place.level]
    features = planned.features[place.level]
    fan_in = channels
    if place.shortcut or place.ours.endswith("unit_0/layer_0"):
      fan_in = planned.features[max(place.level - 1, 0)]
    kernel = read(f"{place.theirs}.conv.weight", (features, fan_in, *size))
    flat[f"{place.ours}/conv/kernel"] = _kernel(kernel, planned, place.shortcut)
    for theirs, ours in (("weight", "scale"), ("bias", "bias")):
      flat[f"{place.ours}/norm/{ours}"] = read(f"{place.theirs}.norm.{theirs}", (features,))
    channels = features
  return traverse_util.unflatten_dict(flat, sep="/")


def _kernel(kernel: np.ndarray, planned: Planned, shortcut: bool) -> np.ndarray:
  """Returns [O, C, *size] in nnU-Net's order of axes as [3, …, C, O] in ours, see the module."""
  axes = len(planned.order)
  kernel = kernel.transpose([2 + axis for axis in planned.order] + [1, 0])
  if not shortcut:
    rim = [((3 - size) // 2,) * 2 for size in kernel.shape[:axes]]
    kernel = np.pad(kernel, [*rim, (0, 0), (0, 0)])
  return np.ascontiguousarray(kernel * np.float32(np.sqrt(EPSILON / planned.epsilon)))


# --- the record -----------------------------------------------------------------------------------
def _record(path: epath.Path, planned: Planned) -> ModelRecord:
  names = tuple(dict.fromkeys(map(normal_name, planned.classes)))
  table = ClassTable.create(names, capacity=max(64, len(names)))
  strides = [[level[axis] for axis in planned.order] for level in planned.strides]
  model = {"model.channels": planned.features[0]}
  if planned.features[-1] < planned.features[0] * 2 ** len(strides) or (
      planned.features[-1] > Config().model.max_channels):
    model["model.max_channels"] = planned.features[-1]
  try:
    config = Config().override({
        **model, "data.spacing": planned.plan.spacing, "data.subvolume": planned.plan.subvolume,
        "model.network": planned.network, "model.strides": strides,
        "model.layers_per_level": planned.layers, "model.norm": "instance",
        "model.activation": planned.activation})
  except InputError as error:
    raise InputError(path, f"{error.subject}: {error.reason}",
                     "the network has no counterpart here") from error
  return ModelRecord(config, table, planned.plan)
