"""Segments one image for `cli.predict`, in the process of the command or in a worker."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from pathlib import Path
import shutil
import sys
import time
from typing import NamedTuple
from typing import TYPE_CHECKING

from condseg_jax.cli import inputs
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.cluster.worker import BAD_CASE
from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.formats import files
from condseg_jax.infer.image_check import check_image
from condseg_jax.infer.image_check import enforce
from condseg_jax.report import results
from condseg_jax.report.page import collect
from condseg_jax.train.run_files import devices

if TYPE_CHECKING:
  from condseg_jax.cli.network import Network
  from condseg_jax.cli.staging import Output
  from condseg_jax.geometry import Volume
  from condseg_jax.infer.prediction import Prediction
  from condseg_jax.infer.schedule import Schedule
  from condseg_jax.predictor import Predictor
  from condseg_jax.report.page.case import Case

PROBABILITIES = "_probabilities.zarr"


class Job(NamedTuple):
  """The common arguments of all images: paths and settings, which workers get with every image.

  Attributes:
    network: what is loaded.
    step: its training step.
    place: folder of the results.
    classes: requested classes.
    settings: fields of `infer.settings.Settings`.
    options: what to write.
    probabilities, uncertainty, refuse_below, report, force: the flags.
    in_worker: whether a worker segments the images, without a progress bar of its own, and records
      its devices, which are not those of the command.
    send: where results go besides the folder.
  """

  network: Network
  step: int
  place: Output
  classes: list[str]
  settings: dict
  options: results.OutputOptions
  probabilities: bool = False
  uncertainty: bool = False
  refuse_below: float | None = None
  report: bool = False
  force: bool = False
  in_worker: bool = False
  send: Callable[[Sequence[Path]], None] | None = None

  @property
  def output(self) -> Path:
    """The local folder of the results."""
    return self.place.path


class Segmented(NamedTuple):
  """What becomes of an image.

  Attributes:
    entry: its record, see `results.Run.add`.
    files: that were written.
    refusal: why the results are set aside.
    page: its part of the page; None without a page.
    error: why there are no results.
  """

  entry: dict[str, object]
  files: Sequence[Path] = ()
  refusal: str = ""
  page: Case | None = None
  error: InputError | None = None


class _Result(NamedTuple):
  """One segmented image."""

  volume: Volume
  prediction: Prediction
  measures: Mapping[str, Mapping]
  findings: list[str]
  files: list[Path]
  refusal: str


def segment(job: Job, image: inputs.InputImage, name: str, title: str,
            masks: Sequence[Path]) -> Segmented:
  """Segments an image and writes its results.

  Args:
    job: what is common to all images.
    image: the image.
    name: its name on the page.
    title: its name in messages.
    masks: its masks of an earlier run, removed if this one decides otherwise.
  """
  predictor, record = job.network.load(job.step), results.CaseRecord()
  start = time.perf_counter()
  try:
    record.source = inputs.identity(image)
    result = _segment(job, predictor, image, title)
    record.files, record.refusal = result.files, result.refusal
    for path in set(masks) - set(result.files):
      job.place.drop(path)
    job.place.send([job.output / f"{image.stem}{PROBABILITIES}", *reversed(result.files)],
                   keep=job.send is not None)  # the masks last
    if job.send and not result.refusal:
      job.send(result.files)
  except BAD_CASE as caught:
    error = as_input_error(caught, image.path)
    return Segmented(record.entry(time.perf_counter() - start, error), error=error)
  entry = record.entry(time.perf_counter() - start)
  if job.in_worker:
    entry["devices"] = devices()
  page = _page_case(predictor, name, image, result) if job.report else None
  return Segmented(entry, record.files, record.refusal, page)


def as_input_error(error: Exception, path: Path) -> InputError:
  """Names the image in errors of the system; the result keeps no frame alive."""
  if isinstance(error, InputError):
    return InputError(error.subject, error.reason, error.cure, usage=error.usage, kind=error.kind)
  if isinstance(error, MemoryError):
    return InputError(path, "does not fit into memory", "crop or resample it, lower --memory, or "
                      "use a machine with more memory")
  reason = getattr(error, "strerror", None) or str(error)
  return InputError(path, reason, "check permissions and free space")


def _page_case(predictor: Predictor, name: str, image: inputs.InputImage,
               result: _Result) -> Case:
  """Renders an image for the page; its results are written, whether or not that succeeds."""
  try:
    return collect.predicted_case(name, result.volume, result.prediction, predictor,
                                  statistics=result.measures, warnings=result.findings)
  except Exception as error:
    reason = printable(f"{type(error).__name__}: {error}")
    print(f"warning: {printable(image.label)}: is not shown on the page: {reason}",
          file=sys.stderr)
    return collect.unshown_case(name)


def _segment(job: Job, predictor: Predictor, image: inputs.InputImage, title: str) -> _Result:
  """Segments one image and writes its results."""
  volume, findings = _read(image, predictor, job.force)
  settings, store = job.settings, job.output / f"{image.stem}{PROBABILITIES}"
  if job.probabilities:
    shutil.rmtree(store, ignore_errors=True)  # of an earlier or an interrupted run
    settings = settings | {"probabilities": str(store)}
  if job.uncertainty:
    settings = settings | {"uncertainty": True}
  announce = functools.partial(_announce, title, settings.get("memory_bytes", math.inf))
  try:
    with as_flags(members="--members"):
      prediction = predictor.predict(volume, job.classes,
                                     announce=None if job.in_worker else announce, **settings)
  except BaseException as error:
    if job.probabilities:
      shutil.rmtree(store, ignore_errors=True)  # incomplete
    if isinstance(error, InputError) and not error.usage:
      raise InputError(image.path, error.reason, error.cure) from error
    raise
  measures = results.structures(volume, prediction, job.options.separate)
  least = job.refuse_below
  refusal = "" if least is None else results.refusal(measures, least)
  findings += [f"set aside: {refusal}"] if refusal else []
  try:
    folder = _set_aside(job, store) if refusal else job.output
    written = results.write(folder, image.stem, image.path, volume, prediction, predictor,
                            job.options._replace(series=image.series), measures, findings)
  except InputError as error:
    raise InputError(image.path, f"{error.subject} {error.reason}", error.cure) from error
  except OSError as error:
    raise InputError(image.path, f"{error.filename or job.output} cannot be written: "
                     f"{error.strerror or error}", "check permissions and free space") from error
  return _Result(volume, prediction, measures, findings, written, refusal)


def _set_aside(job: Job, store: Path) -> Path:
  """Returns the folder for a refused result, after moving its probabilities there."""
  folder = job.output / results.REFUSED
  folder.mkdir(exist_ok=True)
  if job.probabilities:
    shutil.rmtree(folder / store.name, ignore_errors=True)
    shutil.move(store, folder)
  return folder


def _read(image: inputs.InputImage, predictor: Predictor,
          force: bool) -> tuple[Volume, list[str]]:
  """Reads an image and checks its plausibility; returns it and the lines of the findings."""
  volume = files.read_volume(image.path, image.series)
  modality = files.modality(image.path, image.series)
  findings = enforce(image.path, check_image(volume, predictor.plan, predictor.training,
                                             modality=modality),
                     force=force, switch="--force")
  for finding in findings:
    print(f"warning: {printable(image.label)}: {finding}", file=sys.stderr)
  return volume, findings


def _announce(title: str, budget: float, schedule: Schedule, seconds: float,
              single: float) -> Callable[[int], None]:
  """Prints the predicted work and returns the update function of a progress bar."""
  import tqdm
  text = (f"{title}: {schedule.windows} windows, about {seconds:.0f} s, "
          f"{schedule.bytes / 1e6:.0f} MB besides program and image")
  if schedule.bytes > budget:
    text += f" (above the budget of {budget / 1e6:.0f} MB, but the smallest possible)"
  if schedule.passes > 1:
    text += (f" in {schedule.passes} passes of {schedule.classes} classes; a single pass: "
             f"{schedule.whole_bytes / 1e6:.0f} MB, {single:.0f} s (see --memory)")
  print(text, file=sys.stderr, flush=True)
  bar = tqdm.tqdm(total=schedule.windows * schedule.passes, unit="window", leave=False, delay=1)
  return bar.update
