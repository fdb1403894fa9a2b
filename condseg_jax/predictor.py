"""Segments volumes with a trained network: the main entry point of the library.

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
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.infer import fuse
from condseg_jax.infer import postprocess
from condseg_jax.infer import sliding_window
from condseg_jax.infer.full_volume import full_volume_slabs
from condseg_jax.infer.fuse import with_priors
from condseg_jax.infer.prediction import Agreement
from condseg_jax.infer.prediction import Masks
from condseg_jax.infer.prediction import native_label
from condseg_jax.infer.prediction import native_map
from condseg_jax.infer.prediction import Prediction
from condseg_jax.infer.prediction import quality
from condseg_jax.infer.prediction import SoftDice
from condseg_jax.infer.prediction import stored_masks
from condseg_jax.infer.probability_store import ProbabilityStore
from condseg_jax.infer.schedule import make_schedule
from condseg_jax.infer.schedule import Schedule
from condseg_jax.infer.settings import COARSE
from condseg_jax.infer.settings import FAST
from condseg_jax.infer.settings import Settings
from condseg_jax.infer.sliding_window import mirrored
from condseg_jax.models import memory
from condseg_jax.models.network import Network
from condseg_jax.plan import Plan

MARGIN_MM = 10.0  # added around the box in which a coarse prediction finds a class

# Called before prediction with the schedule, the predicted seconds, and those of a single pass.
# Returns a function that is called with the number of windows finished since the last call.
Announce = Callable[[Schedule, float, float], Callable[[int], None]]


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A network with its parameters, class table and plan, or an ensemble of such networks.

  Attributes:
    model: the network.
    variables: its parameters {"params": …}, and {"statistics": …} if it has any.
    table: the classes it was trained on.
    plan: how images become its input.
    step: training step of the checkpoint.
    training: pooled `fingerprint` of the training set; {} if unknown.
    mirror: axes ("D", "H", "W") that training mirrored.
    priors: class → frequency and location, see `data.priors`.
    cleaning: class → fields of `infer.postprocess.ComponentFilter`, tuned on held-out cases.
    functions: encoder and decoder in another runtime; None for JAX.
    locator: another network, trained at a coarser spacing, that first finds the box of each class
      (coarse to fine in two stages, after Roth et al. 2018); None for none.
    others: parameters of the further members of an ensemble, in the form of `variables`: the same
      network, classes and plan. The probabilities of all members are averaged before anything else
      is done with them.
    calibration: class → fields of `infer.fuse.Scaling`, applied before the classes compete. It is
      that of a single member; the mean of several, which is less sure, stays as it is.
    quality: class → fields of `infer.prediction.DiceMap`.
  """

  model: Network
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
  others: tuple[Mapping, ...] = ()
  calibration: Mapping = dataclasses.field(default_factory=dict)
  quality: Mapping = dataclasses.field(default_factory=dict)
  _measured: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

  @property
  def members(self) -> "tuple[Predictor, ...]":
    """The members of an ensemble, each as a predictor of its own."""
    return tuple(dataclasses.replace(self, variables=one, others=())
                 for one in (self.variables, *self.others))

  def predict(self, volume: Volume, classes: Sequence[str] = (), preset: str = "", *,
              announce: Announce | None = None, observe: fuse.Observer | None = None,
              **settings) -> Prediction:
    """Segments a volume.

    Args:
      volume: as read from a file, on any grid; units as in training (CT in HU).
      classes: names of the classes to segment.
      preset: name of a group of classes to add; without classes and preset, all are segmented.
      announce: see `Announce`.
      observe: called with every slab of probabilities as the network computes them, on its grid,
        before calibration and priors.
      **settings: fields of `infer.settings.Settings`.

    Raises:
      InputError: unknown class or preset, invalid settings, or an image the network cannot take.
    """
    options = Settings(**settings)
    if self.locator is not None:
      options = dataclasses.replace(options, two_pass=True)
    ids = self.table.select(classes, preset)
    names = {self.table.names[i]: i + 1 for i in ids}
    within = self._part_ids(ids, options.within)
    rank = fuse.ranks(within)

    boxes = self._boxes(volume, ids, options) if options.two_pass else None
    image = self.normalise(volume, FAST if options.fast else 1.0)
    soft_dice, agreement = SoftDice(), Agreement(1 + len(self.others))
    observers = (soft_dice,) if observe is None else (soft_dice, observe)
    slabs = self._probabilities(image.array, ids, options, announce, boxes, observers, agreement)
    entropy = None
    if options.uncertainty:
      entropy = fuse.Entropy(image.array.shape[:-1], exclusive=options.fusion != "independent")
      slabs = fuse.observed(slabs, (entropy,))
    slabs, store = _stored(slabs, image, names, options)
    best, score = fuse.best_class(slabs, image.array.shape[:-1], ids, rank=rank,
                                  exclusive=options.fusion == "softmax",
                                  threshold=options.threshold)
    del image, slabs  # resampling needs the memory
    uncertainty = None if entropy is None else native_map(entropy.bits(), volume.geometry)
    del entropy
    confidence = fuse.confidence(best, score, options.threshold)
    filters = self._component_filters(names) if options.clean else {}
    label = native_label(best, score, volume.geometry, options.threshold, within, filters)
    if options.fusion == "independent":
      masks = stored_masks(store, names, volume.geometry, options.threshold, filters)
    else:
      masks = Masks(names, lambda name: label.array == names[name])
    return Prediction(label, names, masks, {n: confidence.get(v) for n, v in names.items()},
                      {n: quality(soft_dice.score(v - 1), agreement.dice(v - 1),
                                  self.quality.get(n))
                       for n, v in names.items() if v in confidence or (
                           options.fusion == "independent" and soft_dice.score(v - 1))},
                      uncertainty)

  def normalise(self, volume: Volume, factor: float = 1.0) -> Volume:
    """Prepares an image for the network.

    Args:
      volume: as read from a file.
      factor: multiple of the plan's spacing to resample to.

    Returns:
      float32 [*shape, C] on canonical axes.

    Raises:
      InputError: the number of axes or channels differs from that of the training images, or the
        voxels are so large that there would be too many.
    """
    if volume.ndim != len(self.plan.spacing):
      raise InputError("image", f"has {volume.ndim} axes, the model expects "
                       f"{len(self.plan.spacing)}",
                       f"use a model trained on {volume.ndim}-D images")
    channels = volume.array.shape[-1] if volume.array.ndim > volume.ndim else 1
    if channels != self.plan.channels:
      raise InputError("image", f"has {channels} channels, the model expects {self.plan.channels}",
                       "convert the image")
    spacing = tuple(factor * s for s in self.plan.spacing)
    volume = to_canonical(volume)
    resample.check_size("image", resample.resampled_geometry(volume.geometry, spacing))
    volume = resample.resample_image(volume, spacing)
    image = volume.array if volume.array.ndim > volume.ndim else volume.array[..., None]
    mean = image.mean(dtype=np.float64)
    # Plane by plane, to avoid a float64 copy of the volume.
    squares = sum(np.square(plane - mean, dtype=np.float64).sum() for plane in image)
    sd = np.sqrt(squares / image.size)
    return Volume(self.plan.normalise(image, float(mean), float(sd)), volume.affine)

  def locate(self, volume: Volume, classes: Sequence[str], factor: float,
             options: Settings) -> tuple[dict[str, sliding_window.Box], tuple[int, ...]]:
    """Finds the box of each class at a coarse spacing.

    Voxels at half the threshold or more count as a sign of a class.

    Args:
      volume: as read from a file.
      classes: names of the classes, all of this network's table.
      factor: multiple of the plan's spacing to predict at.
      options: settings of the prediction.

    Returns:
      Class → box, empty if it is absent, and the shape of the grid to which the boxes refer.
    """
    ids = self.table.select(classes)
    image_DHWC = self.normalise(volume, factor).array
    shape = image_DHWC.shape[:-1]
    slabs = fuse.finite(self._window_slabs(image_DHWC, ids, options, None))
    best, score = fuse.best_class(slabs, shape, ids)
    best[score < options.threshold / 2] = 0
    return {name: postprocess.main_box(best, class_id + 1)
            for name, class_id in zip(classes, ids, strict=True)}, shape

  def _part_ids(self, ids: Sequence[int], within: Mapping[str, str]) -> dict[int, int]:
    """Part → whole as class ids, for the pairs of which both are requested.

    Without its whole, a part can neither take voxels from it nor touch it.
    """
    pairs = {self.table.index(part): self.table.index(whole) for part, whole in within.items()}
    return {part: whole for part, whole in pairs.items() if {part, whole} <= set(ids)}

  def _component_filters(self, names: Mapping[str, int]) -> dict[int, postprocess.ComponentFilter]:
    """Label value → tuned component filter, for the requested classes that have one."""
    return {names[name]: postprocess.ComponentFilter(**fields)
            for name, fields in self.cleaning.items() if name in names}

  def _probabilities(self, image_DHWC, ids, options, announce, boxes, observers, watch
                     ) -> Iterator[sliding_window.Slab]:
    """Probabilities of all requested classes, calibrated, and weighted by priors if requested."""
    if options.partition:
      if self.others:
        raise InputError("partition", "is for one network, this is an ensemble",
                         "load a single one with `members`, or predict with windows", usage=True)
      slabs = full_volume_slabs(self.model, self.variables, image_DHWC, ids)
    else:
      slabs = self._window_slabs(image_DHWC, ids, options, announce, boxes, watch)
    slabs = fuse.observed(fuse.finite(slabs), observers)
    if not self.others:
      slabs = fuse.calibrated(slabs, {i: fuse.Scaling(**self.calibration[name]) for i in ids
                                      if (name := self.table.names[i]) in self.calibration})
    if options.priors:
      slabs = with_priors(slabs, image_DHWC.shape[:-1], self._locations(ids))
    return slabs

  def _window_slabs(self, image_DHWC, ids, options, announce, boxes=None,
                    watch=lambda *_: None) -> Iterator[sliding_window.Slab]:
    functions = self.functions or sliding_window.window_functions(self.model)
    window, channels = self.plan.subvolume, image_DHWC.shape[-1]
    if options.tta:
      functions = mirrored(functions, self._mirror_axes(ids))
    on_host = self.functions is not None or jax.default_backend() == "cpu"
    call_bytes = memory.prediction_bytes(self.model, window, channels) if on_host else 0
    schedule = make_schedule(
        image_DHWC.shape[:-1], window, len(ids), step=options.step,
        window_batch=(1,) if on_host else (4, 1), budget=options.memory_bytes, channels=channels,
        at_once=functions.at_once, call_bytes=call_bytes,
        voxel_bytes=((9 if options.fusion == "softmax" else 5)
                     + (fuse.ENTROPY_BYTES if options.uncertainty else 0)))
    progress = lambda _: None
    if announce is not None:
      encode, decode = self._call_seconds(functions, options.tta, schedule.window_batch, channels,
                                          schedule.at_once)
      members = 1 + len(self.others)
      progress = announce(schedule, members * schedule.seconds(encode, decode, len(ids)),
                          members * schedule.seconds(encode, decode, len(ids), passes=1))
    return sliding_window.probability_slabs(functions, self.variables, image_DHWC, ids, window,
                                            schedule, others=self.others, boxes=boxes,
                                            progress=progress, watch=watch)

  def _boxes(self, volume: Volume, ids: Sequence[int],
             options: Settings) -> dict[int, sliding_window.Box]:
    """Finds the boxes of classes, by the locator or by this network at `COARSE` times the spacing.

    Returns:
      class id → box with a margin of `MARGIN_MM`, on the grid of this network's prediction.

    Raises:
      InputError: the locator lacks a class.
    """
    names = [self.table.names[i] for i in ids]
    coarse_options = dataclasses.replace(options, step=1.0)
    if self.locator is None:
      boxes, shape = self.locate(volume, names, COARSE, coarse_options)
    else:
      known = self.locator.table.names
      for name in names:
        if name not in known:
          raise InputError("locator", f"has no class {name!r}",
                           f"use another locator; the classes of this one: {', '.join(known)}",
                           usage=True)
      boxes, shape = self.locator.locate(volume, names, 1.0,
                                         dataclasses.replace(coarse_options, tta=False))
    factor = FAST if options.fast else 1.0
    grid = resample.resampled_geometry(canonical_geometry(volume.geometry),
                                       tuple(factor * s for s in self.plan.spacing))
    return {class_id: _enlarged(boxes[name], shape, grid)
            for class_id, name in zip(ids, names, strict=True)}

  def _locations(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Class id → location prior, see `fuse.with_priors`."""
    locations = {i: np.asarray(self.priors[self.table.names[i]]["location"], np.float32)
                 for i in ids if self.table.names[i] in self.priors}
    if not locations:
      raise InputError("priors", "are not in this checkpoint",
                       "train again, or predict without priors", usage=True)
    return locations

  def _mirror_axes(self, ids: Sequence[int]) -> list[int]:
    """Spatial axes that training mirrored and along which no requested class is lateral."""
    names = "DHW"[3 - self.model.ndim:]
    lateral = {axis for i in ids for axis in self.table.classes[i].no_mirror}
    axes = [a for a, name in enumerate(names) if name in self.mirror and name not in lateral]
    if not axes:
      reason = ("training mirrored no axis (augment.mirror is empty)" if not self.mirror else
                "training mirrored only axes along which these classes are lateral")
      raise InputError("tta", reason, "predict without tta, or train with augment.mirror",
                       usage=True)
    return axes

  def _call_seconds(self, functions, mirrors, batch, channels, size) -> tuple[float, float]:
    """Measures, once, the seconds per call of `encode`, and per class of `decode`."""
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


def _stored(slabs: Iterator[sliding_window.Slab], image: Volume, names: Mapping[str, int],
            options: Settings) -> tuple[Iterator[sliding_window.Slab], ProbabilityStore | None]:
  """Adds a store to the slabs if their probabilities are requested or needed for masks."""
  if options.fusion != "independent" and not options.probabilities:
    return slabs, None
  store = ProbabilityStore(options.probabilities or None, [value - 1 for value in names.values()],
                           image.array.shape[:-1],
                           {"classes": list(names), "affine": image.affine.tolist()})
  return store.keep(slabs), store


def _enlarged(box: sliding_window.Box, shape: Sequence[int],
              grid: Geometry) -> sliding_window.Box:
  """Transfers a box from a coarse grid to a finer one and adds `MARGIN_MM` on all sides.

  Args:
    box: on the coarse grid; empty slices at 0 stay empty.
    shape: of the coarse grid.
    grid: the finer grid over the same field of view.
  """
  return tuple(
      slice(max(0, int(b.start * n / m - MARGIN_MM / s)),
            min(n, int(b.stop * n / m + MARGIN_MM / s) + 1)) if b.stop else slice(0, 0)
      for b, n, m, s in zip(box, grid.shape, shape, grid.spacing, strict=True))
