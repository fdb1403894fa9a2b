"""The front door of the library: a trained network that segments volumes.

    predictor = condseg_jax.load("runs/phantom")
    prediction = predictor.predict(condseg_jax.read("ct.nii.gz"), classes=["liver", "spleen"])
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.export.runtime import onnx_functions
from condseg_jax.export.source import read_model
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
    functions: its halves in another runtime; None for JAX.
  """

  model: DenseUNet
  variables: Mapping
  table: ClassTable
  plan: Plan
  step: int = 0
  functions: windows.WindowFunctions | None = None

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
    functions = self.functions or windows.window_functions(self.model)
    return windows.class_probabilities(functions, self.variables, normal, ids,
                                       self.plan.subvolume, step=step)


def load(workdir, checkpoint: str = "last", runtime: str = "jax") -> Predictor:
  """The predictor of a training run or of a model bundle.

  Args:
    workdir: folder of the run, or the bundle; local or in a bucket.
    checkpoint: `last`, `best` (on the held-out part of the training cases) or a step.
    runtime: `jax`, or `onnx`: onnxruntime, with the graphs of a bundle that has them.

  Raises:
    InputError: no such run, bundle or checkpoint, or a damaged one.
  """
  trained = read_model(workdir, checkpoint)
  record = trained.record
  model = build_model(record.config["model"], record.config["conditioning"], record.table.codes)
  functions = None
  if runtime == "onnx":
    if not trained.graphs:
      raise InputError(workdir, "holds no ONNX", "make a bundle with condseg-export --onnx")
    functions = onnx_functions(trained.graphs, encoder_sees_class=model.encoder_sees_class)
  return Predictor(model, {"params": trained.params}, record.table, record.plan,
                   trained.facts["step"], functions)
