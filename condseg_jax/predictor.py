"""The front door of the library: a trained network that segments volumes.

    predictor = condseg_jax.load("runs/phantom")
    prediction = predictor.predict(condseg_jax.read("ct.nii.gz"), classes=["liver", "spleen"])
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import time

import jax
import numpy as np

from condseg_jax import resample
from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.export.runtime import onnx_functions
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import from_canonical
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.geometry import voxel_ml
from condseg_jax.infer import fuse
from condseg_jax.infer import postprocess
from condseg_jax.infer import sliding_window
from condseg_jax.infer import to_native
from condseg_jax.infer.full_volume import full_volume_slabs
from condseg_jax.infer.fuse import with_priors
from condseg_jax.infer.probability_store import ProbabilityStore
from condseg_jax.infer.schedule import make_schedule
from condseg_jax.infer.schedule import Schedule
from condseg_jax.infer.settings import COARSE
from condseg_jax.infer.settings import FAST
from condseg_jax.infer.settings import Settings
from condseg_jax.infer.sliding_window import mirrored
from condseg_jax.model_io.load import read_model
from condseg_jax.models import memory
from condseg_jax.models.build import build_model
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan

MARGIN_MM = 10.0  # around what a coarse look has found

# Told before the start: the schedule, the predicted seconds, and those of a single pass. What it
# returns is told the number of windows done since it was told last.
Announce = Callable[[Schedule, float, float], Callable[[int], None]]


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
    confidence: class → mean probability, on the network's grid, of the voxels it was given; None
      where it was not found.
  """

  label: Volume
  names: Mapping[str, int]
  masks: Mapping[str, np.ndarray]
  confidence: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A network with its parameters, class table and plan.

  Attributes:
    model: the network.
    variables: its parameters, {"params": …}, and {"statistics": …} where it keeps some.
    table: the classes it knows.
    plan: how images become its input.
    step: of the checkpoint it came from.
    training: what its training set was like, the pooled `fingerprint`; {} where it is unknown.
    mirror: axes ("D", "H", "W") that the training mirrored.
    priors: class → frequency and location, of `data.priors`.
    cleaning: class → fields of `infer.postprocess.ComponentFilter`, chosen on held-out cases.
    functions: its halves in another runtime; None for JAX.
    locator: another network, trained coarsely, that looks first and says where every class is
      (coarse to fine in two stages, after Roth et al. 2018); None where there is none.
  """

  model: DenseUNet
  variables: Mapping
  table: ClassTable
  plan: Plan
  step: int = 0
  training: Mapping = dataclasses.field(default_factory=dict)
  mirror: tuple[str, ...] = ()
  priors: Mapping = dataclasses.field(default_factory=dict)
  cleaning: Mapping = dataclasses.field(default_factory=dict)
  functions: sliding_window.WindowFunctions | None = None
  locator: "Predictor | None" = None
  _measured: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

  def predict(self, volume: Volume, classes: Sequence[str] = (), preset: str = "", *,
              announce: Announce | None = None, **settings) -> Prediction:
    """Segments a volume.

    Args:
      volume: as read from a file, on any grid; units as in training (CT in HU).
      classes, preset: what to look for; the whole table when neither is given.
      announce: see `Announce`.
      settings: fields of `infer.settings.Settings`.

    Raises:
      InputError: unknown class or preset, or a volume that the network cannot take.
    """
    how = Settings(**settings)
    if self.locator is not None:
      how = dataclasses.replace(how, two_pass=True)
    ids = self.table.select(classes, preset)
    within = {self.table.index(part): self.table.index(whole)
              for part, whole in how.within.items()}
    # A part whose whole is not looked for can neither take voxels from it nor touch it.
    within = {part: whole for part, whole in within.items() if {part, whole} <= set(ids)}
    rank = fuse.ranks(within)
    names = {self.table.names[i]: i + 1 for i in ids}
    boxes = self._boxes(volume, ids, how) if how.two_pass else None
    image = self._normalised(volume, FAST if how.fast else 1.0)
    shape = image.array.shape[:-1]
    slabs = (full_volume_slabs(self.model, self.variables, image.array, ids) if how.partition else
             self._window_slabs(image.array, ids, how, announce, boxes))
    if how.priors:
      slabs = with_priors(slabs, shape, self._locations(ids))
    if how.fusion == "independent" or how.probabilities:
      planes = ProbabilityStore(how.probabilities or None, ids, shape,
                      {"classes": list(names), "affine": image.affine.tolist()})
      slabs = planes.keep(slabs)
    best, score = fuse.best_class(slabs, shape, ids, exclusive=how.fusion == "softmax", rank=rank,
                                  threshold=how.threshold)
    del image, slabs
    means = fuse.confidence(best, score, how.threshold)
    grid = canonical_geometry(volume.geometry).shape
    canonical = to_native.label_map(best, score, grid, how.threshold)
    for part in sorted(rank, key=rank.get, reverse=True):
      postprocess.drop_detached(canonical, part + 1, within[part] + 1)
    cleanings = {names[name]: postprocess.ComponentFilter(**fields)
                 for name, fields in self.cleaning.items() if how.clean and name in names}
    size = voxel_ml(volume.affine)
    for value, cleaning in cleanings.items():
      postprocess.clean(canonical, value, cleaning, size)
    label = from_canonical(canonical, volume.geometry)

    def independent(name):
      value = names[name]
      found = to_native.mask(lambda rows: planes.rows(value - 1, rows), shape, grid, how.threshold)
      if value in cleanings:
        postprocess.clean(found, True, cleanings[value], size)
      return from_canonical(found, volume.geometry).array

    def exclusive(name):
      return label.array == names[name]

    mask = independent if how.fusion == "independent" else exclusive
    return Prediction(label, names, Masks(names, mask),
                      {name: means.get(value) for name, value in names.items()})

  def _normalised(self, volume: Volume, factor: float) -> Volume:
    """float32 [*shape, C] at a multiple of the plan's spacing, canonical axes."""
    if volume.ndim != len(self.plan.spacing):
      raise InputError("image", f"has {volume.ndim} axes, the model was trained on "
                       f"{len(self.plan.spacing)}", "use a model for such images")
    channels = volume.array.shape[-1] if volume.array.ndim > volume.ndim else 1
    if channels != self.plan.channels:
      raise InputError("image", f"has {channels} channels, the model takes {self.plan.channels}",
                       "convert the image")
    spacing = tuple(factor * s for s in self.plan.spacing)
    volume = resample.resample_image(to_canonical(volume), spacing)
    image = volume.array if volume.array.ndim > volume.ndim else volume.array[..., None]
    mean = image.mean(dtype=np.float64)
    # In planes, so that no volume of float64 is made.
    squares = sum(np.square(plane - mean, dtype=np.float64).sum() for plane in image)
    sd = np.sqrt(squares / image.size)
    return Volume(self.plan.normalise(image, float(mean), float(sd)), volume.affine)

  def _window_slabs(self, image, ids, how, announce, boxes=None) -> Iterator[sliding_window.Slab]:
    functions = self.functions or sliding_window.window_functions(self.model)
    window = self.plan.subvolume
    if how.tta:
      functions = mirrored(functions, self._mirror_axes(ids))
    on_host = self.functions is not None or jax.default_backend() == "cpu"
    batches = (1,) if on_host else (4, 1)
    call = memory.prediction_bytes(self.model, window, image.shape[-1])
    schedule = make_schedule(
        image.shape[:-1], window, len(ids), step=how.step, window_batch=batches,
        budget=how.memory_bytes, channels=image.shape[-1], at_once=functions.at_once,
        call_bytes=call if on_host else 0, voxel_bytes=9 if how.fusion == "softmax" else 5)
    progress = lambda windows: None
    if announce is not None:
      encode, decode = self._seconds(functions, how.tta, schedule.window_batch, image.shape[-1],
                                     schedule.at_once)
      progress = announce(schedule, schedule.seconds(encode, decode, len(ids)),
                          schedule.seconds(encode, decode, len(ids), passes=1))
    return sliding_window.probability_slabs(functions, self.variables, image, ids, window, schedule,
                                     boxes=boxes, progress=progress)

  def _boxes(self, volume, ids, how) -> dict[int, sliding_window.Box]:
    """Where the classes are, from the locator's look, or one at `COARSE` times the spacing.

    A voxel is taken for a sign of a class at half the threshold; the box grows by `MARGIN_MM`.

    Returns:
      class → box on the grid of this network's plan.

    Raises:
      InputError: the locator lacks a class.
    """
    looks, factor, once = self, COARSE, dataclasses.replace(how, step=1.0)
    if self.locator is not None:
      looks, factor, once = self.locator, 1.0, dataclasses.replace(once, tta=False)
    names = [self.table.names[i] for i in ids]
    for name in names:
      if name not in looks.table.names:
        raise InputError("locator", f"does not know the class {name!r}",
                         f"name another; this one knows {', '.join(looks.table.names)}", usage=True)
    seen = looks.table.select(names)
    coarse = looks._normalised(volume, factor)
    shape = coarse.array.shape[:-1]
    best, score = fuse.best_class(looks._window_slabs(coarse.array, seen, once, None), shape, seen)
    best[score < how.threshold / 2] = 0
    grid = canonical_geometry(volume.geometry)
    factor = FAST if how.fast else 1.0
    fine = resample.resampled_geometry(grid, [factor * s for s in self.plan.spacing])
    boxes = {}
    for class_id, seen_id in zip(ids, seen, strict=True):
      box = postprocess.main_box(best, seen_id + 1)
      boxes[class_id] = tuple(
          slice(max(0, int(b.start * n / m - MARGIN_MM / s)),
                min(n, int(b.stop * n / m + MARGIN_MM / s) + 1)) if b.stop else slice(0, 0)
          for b, n, m, s in zip(box, fine.shape, shape, fine.spacing, strict=True))
    return boxes

  def _locations(self, ids) -> dict[int, np.ndarray]:
    found = {i: np.asarray(self.priors[self.table.names[i]]["location"], np.float32)
             for i in ids if self.table.names[i] in self.priors}
    if not found:
      raise InputError("priors", "are not in this checkpoint", "train anew, or predict without",
                       usage=True)
    return found

  def _mirror_axes(self, ids) -> list[int]:
    """Spatial axes that the training mirrored and no class of these has sides along."""
    names = "DHW"[3 - self.model.ndim:]
    sides = {axis for i in ids for axis in self.table.classes[i].no_mirror}
    axes = [a for a, name in enumerate(names) if name in self.mirror and name not in sides]
    if not axes:
      reason = ("the training mirrored no axis (augment.mirror is empty)" if not self.mirror else
                "the training mirrored no axis but such along which these classes have sides")
      raise InputError("tta", reason, "predict without it, or train with augment.mirror",
                       usage=True)
    return axes

  def _seconds(self, functions, mirrors, batch, channels, size) -> tuple[float, float]:
    """Of a call of `encode`, and of `decode` for each class; measured once."""
    key = mirrors, batch, channels, size
    if key in self._measured:
      return self._measured[key]
    image = np.zeros((batch, *self.plan.subvolume, channels), np.float32)
    ids = np.zeros(size, np.int32)
    for _ in range(2):  # the first compiles
      start = time.perf_counter()
      features = jax.block_until_ready(functions.encode(self.variables, image, ids))
      middle = time.perf_counter()
      jax.block_until_ready(functions.decode(self.variables, features, ids))
      end = time.perf_counter()
    self._measured[key] = middle - start, (end - middle) / size
    return self._measured[key]


def load(workdir, checkpoint: str = "last", runtime: str = "jax", locator="") -> Predictor:
  """The predictor of a training run or of a model bundle.

  Args:
    workdir: folder of the run, or the bundle; local or in a bucket.
    checkpoint: `last`, `best` (on the held-out part of the training cases) or a step.
    runtime: `jax`, or `onnx`: onnxruntime, with the graphs of a bundle that has them.
    locator: run or bundle of the network that looks first, see `Predictor`; "" for none.

  Raises:
    InputError: no such run, bundle or checkpoint, or a damaged one.
  """
  trained = read_model(workdir, checkpoint)
  record = trained.record
  model = build_model(record.config.model, record.config.conditioning, record.table.codes)
  functions = None
  if runtime == "onnx":
    if not trained.graphs:
      raise InputError(workdir, "holds no ONNX", "make a bundle with condseg-export --onnx")
    functions = onnx_functions(trained.graphs, encoder_sees_class=model.encoder_sees_class)
  return Predictor(model, trained.variables, record.table, record.plan,
                   trained.facts["step"], record.training,
                   record.config.augment.mirror, record.priors, record.cleaning,
                   functions, load(locator) if locator else None)
