"""The front door of the library: a trained network that segments volumes.

    predictor = condseg_jax.load("runs/phantom")
    prediction = predictor.predict(condseg_jax.read("ct.nii.gz"), classes=["liver", "spleen"])
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import time

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.formats import resample
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.infer import fuse
from condseg_jax.infer import native
from condseg_jax.infer import predict as windows
from condseg_jax.infer import schedule
from condseg_jax.infer.planes import Planes
from condseg_jax.infer.whole import whole_slabs
from condseg_jax.models import memory
from condseg_jax.models.build import build_model
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.train.checkpoint import Checkpoints

# Told the schedule and the predicted seconds before the start; what it returns is told the number
# of windows done since it was told last.
Announce = Callable[[schedule.Schedule, float], Callable[[int], None]]


class Masks(Mapping):
  """Class → bool mask on the grid of the file, made when it is asked for."""

  def __init__(self, names: Sequence[str], make: Callable[[str], np.ndarray]):
    self._names, self._make = tuple(names), make

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._names:
      raise KeyError(name)
    return self._make(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What was found in a volume, on the grid of the file it came from.

  Attributes:
    label: label map, id + 1 of the class, 0 for background.
    names: class → its value in the label map, for the classes asked for.
    masks: class → bool mask, made when it is asked for; they may overlap with independent fusion.
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
  """

  model: DenseUNet
  variables: Mapping
  table: ClassTable
  plan: Plan
  step: int = 0
  _measured: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

  def predict(self, volume: Volume, classes: Sequence[str] = (), preset: str = "", *,
              fusion: str = "argmax", threshold: float = 0.5, step: float = 0.5,
              partition: bool = False, memory_bytes: int | None = None,
              announce: Announce | None = None) -> Prediction:
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
      memory_bytes: budget on the host for all that does not depend on the file (see
        `infer.schedule`); a sensible part of the machine's memory when None.
      announce: see `Announce`.

    Raises:
      InputError: unknown class or preset, or a volume that the network cannot take.
    """
    fuse.check_fusion(fusion)
    ids = self.table.select(classes, preset)
    names = {self.table.names[i]: i + 1 for i in ids}
    image = self._normalised(volume)
    shape = image.shape[:-1]
    slabs = (whole_slabs(self.model, self.variables, image, ids) if partition else
             self._window_slabs(image, ids, step, memory_bytes, announce))
    if fusion == "independent":
      planes = Planes(None, ids, shape)
      slabs = planes.keep(slabs)
    best, score = fuse.best_class(slabs, shape, ids, exclusive=fusion == "softmax")
    del image
    grid = canonical_geometry(volume.geometry).shape
    label = from_canonical(native.label_map(best, score, grid, threshold), volume.geometry)

    def independent(name):
      found = native.mask(lambda rows: planes.rows(names[name] - 1, rows), shape, grid, threshold)
      return from_canonical(found, volume.geometry).array

    def exclusive(name):
      return label.array == names[name]

    mask = independent if fusion == "independent" else exclusive
    return Prediction(label, names, Masks(names, mask))

  def _normalised(self, volume: Volume) -> np.ndarray:
    """float32 [*shape, C] on the plan's grid, canonical axes."""
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
    mean = image.mean(dtype=np.float64)
    # In planes, so that no volume of float64 is made.
    squares = sum(np.square(plane - mean, dtype=np.float64).sum() for plane in image)
    return self.plan.normalise(image, float(mean), float(np.sqrt(squares / image.size)))

  def _window_slabs(self, image, ids, step, budget, announce) -> Iterator[windows.Slab]:
    functions, window = windows.window_functions(self.model), self.plan.subvolume
    on_host = jax.default_backend() == "cpu"
    batch = 1 if on_host else 4
    call = memory.prediction_bytes(self.model, window, image.shape[-1], batch)
    plan = schedule.make(image.shape[:-1], window, len(ids), step=step, window_batch=batch,
                         budget=budget, channels=image.shape[-1], at_once=functions.at_once,
                         call_bytes=call if on_host else 0)
    progress = lambda windows: None
    if announce is not None:
      encode, decode = self._seconds(batch, image.shape[-1], plan.at_once)
      progress = announce(plan, plan.seconds(encode, decode, len(ids)))
    return windows.probability_slabs(functions, self.variables, image, ids, window, plan, progress)

  def _seconds(self, batch, channels, size) -> tuple[float, float]:
    """Of a call of `encode`, and of `decode` for each class; measured once."""
    if (batch, channels, size) in self._measured:
      return self._measured[batch, channels, size]
    functions = windows.window_functions(self.model)
    image = np.zeros((batch, *self.plan.subvolume, channels), np.float32)
    ids = np.zeros(size, np.int32)
    for _ in range(2):  # the first compiles
      start = time.perf_counter()
      features = jax.block_until_ready(functions.encode(self.variables, image, ids))
      middle = time.perf_counter()
      jax.block_until_ready(functions.decode(self.variables, features, ids))
      end = time.perf_counter()
    self._measured[batch, channels, size] = middle - start, (end - middle) / size
    return self._measured[batch, channels, size]


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
  return Predictor(model, {"params": params}, record.table, record.plan, step)
