"""The front door of the library: a trained network that segments volumes.

    predictor = condseg_jax.load("runs/phantom")
    prediction = predictor.predict(condseg_jax.read("ct.nii.gz"), classes=["liver", "spleen"])
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.formats import resample
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.infer import fuse
from condseg_jax.infer import predict as windows
from condseg_jax.infer.whole import whole_probabilities
from condseg_jax.models.build import build_model
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.train.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What was found in a volume, on the grid of the file it came from.

  Attributes:
    label: label map, id + 1 of the class, 0 for background.
    names: class → its value in the label map, for the classes asked for.
    masks: class → bool mask; they may overlap with independent fusion.
  """

  label: Volume
  names: Mapping[str, int]
  masks: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A network with its parameters, class table and plan.

  Attributes:
    model: the network.
    variables: its parameters, {"params": …}.
    table: the classes it knows.
    plan: how images become its input.
    step: of the checkpoint it came from.
    training: what its training set was like, the pooled `fingerprint`; {} where it is unknown.
  """

  model: DenseUNet
  variables: Mapping
  table: ClassTable
  plan: Plan
  step: int = 0
  training: Mapping = dataclasses.field(default_factory=dict)

  def predict(self, volume: Volume, classes: Sequence[str] = (), preset: str = "", *,
              fusion: str = "argmax", threshold: float = 0.5, step: float = 0.5,
              partition: bool = False) -> Prediction:
    """Segments a volume.

    Args:
      volume: as read from a file, on any grid; units as in training (CT in HU).
      classes, preset: what to look for; the whole table when neither is given.
      fusion: `argmax`, the most probable class above the threshold; `softmax`, the same after the
        classes and background are made alternatives; `independent`, a mask per class, which may
        overlap (the label map then shows the most probable).
      threshold: probability from which a voxel belongs to a class.
      step: distance of neighbouring windows as a part of the window.
      partition: without windows: the whole volume in one pass, split along its first canonical axis
        over all devices of this process (see `infer.whole`).

    Raises:
      InputError: unknown class or preset, or a volume that the network cannot take.
    """
    fuse.check_fusion(fusion)
    ids = self.table.select(classes, preset)
    planes = self._probabilities(volume, ids, step, partition)
    if fusion == "softmax":
      planes = fuse.exclusive_probabilities(planes)
    grid = canonical_geometry(volume.geometry).shape

    masks = {}

    def native(class_id, plane):
      plane = resample.resample_to(plane, grid, 1)
      if fusion == "independent":
        masks[self.table.names[class_id]] = from_canonical(
            plane >= threshold, volume.geometry).array
      return plane

    canonical = fuse.best_class(map(native, ids, planes), ids, threshold)
    label = from_canonical(canonical, volume.geometry)
    names = {self.table.names[i]: i + 1 for i in ids}
    if fusion != "independent":
      masks = {name: label.array == value for name, value in names.items()}
    return Prediction(label, names, masks)

  def _probabilities(self, volume: Volume, ids, step, partition) -> np.ndarray:
    """float32 [K, *shape] on the plan's grid, canonical axes."""
    if volume.ndim != len(self.plan.spacing):
      raise InputError("image", f"has {volume.ndim} axes, the model was trained on "
                       f"{len(self.plan.spacing)}", "use a model for such images")
    channels = volume.array.shape[-1] if volume.array.ndim > volume.ndim else 1
    wanted = 3 if self.plan.modality == "rgb" else 1
    if channels != wanted:
      raise InputError("image", f"has {channels} channels, the model takes {wanted}",
                       "convert the image")
    image = resample.resample_image(to_canonical(volume), self.plan.spacing).array
    image = image if image.ndim > volume.ndim else image[..., None]
    mean, sd = image.mean(dtype=np.float64), image.std(dtype=np.float64)
    normal = self.plan.normalise(image, float(mean), float(sd))
    if partition:
      return whole_probabilities(self.model, self.variables, normal, ids)
    functions = windows.window_functions(self.model)
    return windows.class_probabilities(functions, self.variables, normal, ids,
                                       self.plan.subvolume, step=step)


def load(workdir, checkpoint: str = "last") -> Predictor:
  """The predictor of a training run.

  Args:
    workdir: of the run; a local folder or a bucket.
    checkpoint: `last`, `best` (on the held-out part of the training cases) or a step.

  Raises:
    InputError: no such run or checkpoint, or a damaged one.
  """
  checkpoints = Checkpoints(workdir, read_only=True)
  try:
    step = checkpoints.pick(checkpoint)
    record = checkpoints.read_record(step)
    params = checkpoints.restore_params(step)
  finally:
    checkpoints.close()
  model = build_model(record.config["model"], record.config["conditioning"], record.table.codes)
  return Predictor(model, {"params": params}, record.table, record.plan, step, record.training)
