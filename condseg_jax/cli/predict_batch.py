"""Segments the images of a batch for `cli.predict`, and goes on after one that fails."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from pathlib import Path
import shutil
import sys
from typing import NamedTuple
from typing import TYPE_CHECKING

from condseg_jax.cli import inputs
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.formats import files
from condseg_jax.infer.image_check import check_image
from condseg_jax.infer.image_check import enforce
from condseg_jax.report import results
from condseg_jax.report.page import collect

if TYPE_CHECKING:
  from absl import flags

  from condseg_jax.cli.staging import Output
  from condseg_jax.geometry import Volume
  from condseg_jax.infer.prediction import Prediction
  from condseg_jax.infer.schedule import Schedule
  from condseg_jax.predictor import Predictor
  from condseg_jax.report.page.case import Case

PROBABILITIES = "_probabilities.zarr"


class Job(NamedTuple):
  """The common arguments of all images."""

  values: flags.FlagValues
  output: Path
  place: Output  # the same folder, where the user named it
  predictor: Predictor
  classes: list[str]
  settings: dict
  options: results.OutputOptions
  send: Callable[[Sequence[Path]], None] | None  # where results go besides the output folder


class _Result(NamedTuple):
  """One segmented image."""

  volume: Volume
  prediction: Prediction
  measures: Mapping[str, Mapping]
  findings: list[str]
  files: list[Path]
  refusal: str


def segment_all(job: Job, images: list[inputs.InputImage], run: results.Run, suffix: str) -> int:
  """Segments the images of this part; returns the exit code."""
  values = job.values
  names = collect.case_names([image.stem for image in images], values.report_names)
  mine = list(zip(images, names, strict=True))[values.part::values.num_parts]
  failures, refusals, cases = [], [], []
  for number, (image, name) in enumerate(mine, 1):
    title = f"{number}/{len(mine)} {image.stem}"
    masks = _masks_of(job, image, run)
    if values["continue"].value and all(map(job.place.exists, masks)):
      reason = _outdated(image, run, masks)
      print(f"{title}: {reason or 'already done'}", flush=True)
      if not reason:
        refusals += _refused(image, run.earlier_case(image.stem).get("reason", ""))
        cases.append(collect.earlier_case(name))
        continue
    try:
      with run.case(image.stem) as record:
        record.source = inputs.identity(image)
        result = _segment(job, image, title)
        record.files, record.refusal = result.files, result.refusal
        for path in set(masks) - set(result.files):  # of an earlier run, which decided otherwise
          job.place.drop(path)
        job.place.send([job.output / f"{image.stem}{PROBABILITIES}",
                        *reversed(result.files)], keep=job.send is not None)  # the masks last
        if job.send and not result.refusal:
          job.send(result.files)
      print("  ".join(map(job.place.name, result.files)), flush=True)
      refusals += _refused(image, result.refusal)
      if values.report:
        collect.add(cases, _page_case(job, name, image, result))
      del result  # its memory is needed for the next image
      job.place.send([run.path], keep=True)
    except (InputError, OSError, MemoryError) as error:
      error = _as_input_error(error, image.path)
      if len(mine) == 1 or error.usage:
        raise error from None
      failures.append(f"{image.stem}: {error}" if image.series else str(error))
      cases.append(collect.failed_case(name, error, image.path, values.report_names))
  failures += [str(run.problem)] if run.problem else []
  if values.report:
    page = job.output / f"report{suffix}.html"
    try:
      print(job.place.named(collect.write_report(page, cases, job.predictor)))
    except InputError as error:
      failures.append(str(error))
    except Exception as error:  # must not hide the failures above
      failures.append(f"{page}: cannot be made: {_kind(error)}")
  for line in (*refusals, *(f"failed: {failure}" for failure in failures)):
    print(line, file=sys.stderr)
  return 1 if failures or refusals else 0


def _refused(image: inputs.InputImage, reason: str) -> list[str]:
  return [f"refused: {printable(image.label)}: {reason}"] if reason else []


def _masks_of(job: Job, image: inputs.InputImage, run: results.Run) -> list[Path]:
  """Returns the masks of an image where they are, or will be."""
  aside = run.earlier_case(image.stem).get("status") == "refused"
  return list(results.mask_files(job.output / results.REFUSED if aside else job.output, image.stem,
                                 job.predictor, job.classes, job.options.separate).values())


def _page_case(job: Job, name: str, image: inputs.InputImage, result: _Result) -> Case:
  """Renders an image for the page; its results are written, whether or not that succeeds."""
  try:
    return collect.predicted_case(name, result.volume, result.prediction, job.predictor,
                                  statistics=result.measures, warnings=result.findings)
  except Exception as error:
    print(f"warning: {printable(image.label)}: is not shown on the page: {_kind(error)}",
          file=sys.stderr)
    return collect.unshown_case(name)


def _kind(error: Exception) -> str:
  return printable(f"{type(error).__name__}: {error}")


def _outdated(image: inputs.InputImage, run: results.Run, masks: Iterable[Path]) -> str:
  """Returns why existing masks are not those of an image; "" if they are."""
  entry = run.earlier_case(image.stem)
  if entry.get("status", "done") == "failed":
    return "failed since its masks were written, predicted again"
  recorded = entry.get("input")
  unchanged = inputs.is_unchanged(image, recorded) if recorded else inputs.is_older(image, masks)
  return "" if unchanged else "was changed since its masks were written, predicted again"


def _segment(job: Job, image: inputs.InputImage, title: str) -> _Result:
  """Segments one image and writes its results."""
  volume, findings = _read(image, job.predictor, job.values)
  settings, store = job.settings, job.output / f"{image.stem}{PROBABILITIES}"
  if job.values.probabilities:
    shutil.rmtree(store, ignore_errors=True)  # of an earlier or an interrupted run
    settings = settings | {"probabilities": str(store)}
  if job.values.uncertainty:
    settings = settings | {"uncertainty": True}
  announce = functools.partial(_announce, title, settings.get("memory_bytes", math.inf))
  try:
    with as_flags(members="--members"):
      prediction = job.predictor.predict(volume, job.classes, announce=announce, **settings)
  except BaseException as error:
    if job.values.probabilities:
      shutil.rmtree(store, ignore_errors=True)  # incomplete
    if isinstance(error, InputError) and not error.usage:
      raise InputError(image.path, error.reason, error.cure) from error
    raise
  measures = results.structures(volume, prediction, job.options.separate)
  least = job.values.refuse_below
  refusal = "" if least is None else results.refusal(measures, least)
  findings += [f"set aside: {refusal}"] if refusal else []
  try:
    folder = _set_aside(job, store) if refusal else job.output
    written = results.write(folder, image.stem, image.path, volume, prediction, job.predictor,
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
  if job.values.probabilities:
    shutil.rmtree(folder / store.name, ignore_errors=True)
    shutil.move(store, folder)
  return folder


def _as_input_error(error: InputError | OSError | MemoryError, path: Path) -> InputError:
  """Names the image in errors of the system."""
  if isinstance(error, OSError):
    return InputError(path, error.strerror or str(error), "check permissions and free space")
  if isinstance(error, MemoryError):
    return InputError(path, "does not fit into memory", "crop or resample it, lower --memory, or "
                      "use a machine with more memory")
  return error


def _read(image: inputs.InputImage, predictor: Predictor,
          values: flags.FlagValues) -> tuple[Volume, list[str]]:
  """Reads an image and checks its plausibility; returns it and the lines of the findings."""
  volume = files.read_volume(image.path, image.series)
  modality = files.modality(image.path, image.series)
  findings = enforce(image.path, check_image(volume, predictor.plan, predictor.training,
                                             modality=modality),
                     force=values.force, switch="--force")
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
