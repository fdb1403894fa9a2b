"""condseg-predict --workdir=RUN --input=FILE_OR_DIR --output=DIR [--classes=… | --preset=…]

Segments images with a trained network: one label map per image, on the image's own grid.

  condseg-predict --workdir=runs/ct --input=scan.nii.gz --output=masks --classes=liver,spleen

With --fusion=independent one mask per class is written; masks may overlap. Volumes, intensities and
positions of the structures are in STEM_statistics.json, settings and outcome in run.json. --report
adds report.html, a page with all results that can be opened offline. For a DICOM series the result
is also written as DICOM-SEG (extra `dicom`); --dicom=seg,rtstruct adds contours, --dicom= disables
both. A DICOM object that was not requested and cannot be made is skipped with a warning.

--input=dicomweb+http://HOST/dicom-web?StudyInstanceUID=… fetches the series of a study from a
DICOMweb server, and --send stores the DICOM objects there (extra `pacs`).

A DICOM folder with several series is segmented series by series, unless --series selects one. The
results are named FOLDER_NUMBER_DESCRIPTION_HASH after SeriesNumber, SeriesDescription and a hash of
the SeriesInstanceUID.

The Dice of every structure is predicted if the network was trained with --folds. Results with a
structure below --refuse_below=0.5 are set aside in OUTPUT/refused and listed at the end, and the
exit code is 1.

An image that is clearly of another kind than the training images is refused. A batch continues
after a bad image and lists it at the end. Several machines can share a folder of images with
--num_parts=N and --part=0 … N-1, each with its own records (run_PART.json). --continue resumes an
interrupted run: the masks of an image are written last and atomically, and kept while the image is
the same.
"""

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

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cli.argument_flags import as_flags
from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.system.large_pages import restart_with_large_pages

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.cli.inputs import InputImage
  from condseg_jax.geometry import Volume
  from condseg_jax.infer.prediction import Prediction
  from condseg_jax.infer.schedule import Schedule
  from condseg_jax.predictor import Predictor
  from condseg_jax.report.page.case import Case
  from condseg_jax.report.results import OutputOptions
  from condseg_jax.report.results import Run

SETTINGS = ("fusion", "threshold", "step", "tta", "fast", "two_pass", "partition",
            "priors", "clean")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  switch = functools.partial(flags.DEFINE_bool, flag_values=values)
  several = functools.partial(flags.DEFINE_list, flag_values=values)
  number = functools.partial(flags.DEFINE_float, lower_bound=0.0, flag_values=values)
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  shell.define_model(values)
  shell.define_verify(values)
  shell.define_locator(values)
  text("input", "", "An image, a folder of images, a folder of one or more DICOM series, a text "
       "file with one image or DICOM folder per line, or a study on a DICOMweb server: "
       "dicomweb+http://HOST/dicom-web?StudyInstanceUID=…, optionally &SeriesInstanceUID=….")
  text("series", "", "SeriesInstanceUID to select from a DICOM folder with several series; all are "
       "segmented when empty.")
  text("output", "", "Folder for the results.")
  several("classes", [], "Classes to segment; all when empty.")
  text("preset", "", "A named group of classes.")
  flags.DEFINE_enum("fusion", "argmax", ("argmax", "softmax", "independent"),
                    "How the classes of a voxel are resolved.", flag_values=values)
  several("within", [], "PART=WHOLE, e.g. tumour=liver: a part takes its voxels from the whole, "
          "and components that do not touch it are removed.")
  number("threshold", 0.5, "Probability from which a voxel belongs to a class.", upper_bound=1.0)
  flags.DEFINE_float("step", 0.5, "Distance of neighbouring windows as a fraction of the window.",
                     lower_bound=0.05, upper_bound=1.0, flag_values=values)
  switch("tta", False, "Average over mirror images along the axes that training mirrored; slower.")
  switch("priors", False, "Weight classes by their frequency in the training masks at each "
         "position.")
  switch("clean", True, "Filter connected components as tuned on held-out training cases.")
  switch("fast", False, "Predict at 1.25 times the spacing: faster, less accurate.")
  switch("two_pass", False, "Locate each class at a coarse spacing first: for volumes much larger "
         "than the structures.")
  switch("partition", False, "Predict each image in one pass instead of windows, split over all "
         "devices: for accelerators that can only hold it together.")
  flags.DEFINE_enum("runtime", "jax", ("jax", "onnx"), "onnx: onnxruntime on the CPU, for a bundle "
                    "exported with --onnx.", flag_values=values)
  number("memory", None, "Memory budget of prediction in GB, besides the image as read; by default "
         "a quarter of the machine's memory, at most 4.")
  switch("force", False, "Segment images that look implausible, too.")
  whole("num_parts", 1, "Number of parts into which the images are divided.", lower_bound=1)
  whole("part", 0, "The part to process.", lower_bound=0)
  switch("continue", False, "Skip images whose results exist, unless the image was changed since.")
  several("dicom", ["seg"], "DICOM objects to write for a DICOM series: seg, rtstruct.")
  switch("send", False, "Store the DICOM objects on the DICOMweb server of --input, except refused "
         "ones.")
  switch("separate", False, "Write one mask per class instead of the label map.")
  switch("probabilities", False, "Also write the probabilities of all classes, as zarr.")
  number("refuse_below", None, "Predicted Dice below which the results of an image are set aside; "
         "for networks trained with --folds.", upper_bound=1.0)
  switch("picture", True, "Write an overlay of every result.")
  shell.define_report(values)


class _Job(NamedTuple):
  """The common arguments of all images."""

  values: flags.FlagValues
  output: Path
  predictor: Predictor
  classes: list[str]
  settings: dict
  options: OutputOptions
  send: Callable[[Sequence[Path]], None] | None  # where results go besides the output folder


class _Result(NamedTuple):
  """One segmented image."""

  volume: Volume
  prediction: Prediction
  measures: Mapping[str, Mapping]
  findings: list[str]
  files: list[Path]
  refusal: str


def _work(values: flags.FlagValues) -> int:
  # Everything that needs no network is checked before it is loaded.
  shell.require(values, "workdir", "input", "output")
  settings = _settings(values)
  output = Path(values.output)
  from condseg_jax.dicomweb.address import is_address
  if is_address(values.input):
    from condseg_jax.cli.remote import fetched
    with fetched(values.input, values.series) as remote:
      return _predict(values, settings, output, remote.images, remote.send if values.send else None)
  if values.send:
    raise InputError("--send", "needs a DICOMweb server", "give --input=dicomweb+http://…",
                     usage=True)
  from condseg_jax.cli import inputs
  images = inputs.list_inputs(Path(values.input), values.series)
  return _predict(values, settings, output, images)


def _predict(values: flags.FlagValues, settings: dict, output: Path, images: list[InputImage],
             send: Callable[[Sequence[Path]], None] | None = None) -> int:
  from condseg_jax.cli import inputs
  options = _output_options(values, images)
  inputs.check_apart(images, Path(values.input), output, options.separate)
  inputs.check_writable(output)

  from condseg_jax.loading import load
  from condseg_jax.report import results
  from condseg_jax.system.cache import enable_compilation_cache
  from condseg_jax.system.lock import held

  enable_compilation_cache()
  with as_flags(members="--members"):
    predictor = load(values.workdir, values.checkpoint, values.runtime, values.locator,
                     verify=values.verify == "on", members=values.members)
  ids = predictor.table.select(values.classes, values.preset)
  classes = [predictor.table.names[i] for i in ids]
  if values.refuse_below is not None and predictor.quality.keys().isdisjoint(classes):
    raise InputError("--refuse_below", f"{values.workdir} predicts no Dice of these classes",
                     "train with --folds, with 9 cases of a class or more", usage=True)
  results.check_names(output, [image.stem for image in images], predictor, classes,
                      options.separate, [image.path for image in images])
  suffix = "" if values.num_parts == 1 else f"_{values.part}"  # other parts write at the same time
  with held(output, suffix):
    more = ("locator", "members", "refuse_below")
    recorded = settings | {name: values[name].value for name in more if values[name].value}
    run = results.Run(output / f"run{suffix}.json", predictor, classes, recorded,
                      same=values["continue"].value)
    job = _Job(values, output, predictor, classes, settings, options, send)
    return _segment_all(job, images, run, suffix)


def _segment_all(job: _Job, images: list[InputImage], run: Run, suffix: str) -> int:
  """Segments the images of this part; returns the exit code."""
  from condseg_jax.cli import inputs
  from condseg_jax.report.page import collect
  values = job.values
  names = collect.case_names([image.stem for image in images], values.report_names)
  mine = list(zip(images, names, strict=True))[values.part::values.num_parts]
  failures, refusals, cases = [], [], []
  for number, (image, name) in enumerate(mine, 1):
    title = f"{number}/{len(mine)} {image.stem}"
    masks = _masks_of(job, image, run)
    if values["continue"].value and all(path.exists() for path in masks):
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
          path.unlink(missing_ok=True)
        if job.send and not result.refusal:
          job.send(result.files)
      print("  ".join(map(str, result.files)), flush=True)
      refusals += _refused(image, result.refusal)
      if values.report:
        collect.add(cases, _page_case(job, name, image, result))
      del result  # its memory is needed for the next image
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
      print(collect.write_report(page, cases, job.predictor))
    except InputError as error:
      failures.append(str(error))
    except Exception as error:  # must not hide the failures above
      failures.append(f"{page}: cannot be made: {_kind(error)}")
  for line in (*refusals, *(f"failed: {failure}" for failure in failures)):
    print(line, file=sys.stderr)
  return 1 if failures or refusals else 0


def _refused(image: InputImage, reason: str) -> list[str]:
  return [f"refused: {printable(image.label)}: {reason}"] if reason else []


def _masks_of(job: _Job, image: InputImage, run: Run) -> list[Path]:
  """Returns the masks of an image where they are, or will be."""
  from condseg_jax.report import results
  aside = run.earlier_case(image.stem).get("status") == "refused"
  return list(results.mask_files(job.output / results.REFUSED if aside else job.output, image.stem,
                                 job.predictor, job.classes, job.options.separate).values())


def _page_case(job: _Job, name: str, image: InputImage, result: _Result) -> Case:
  """Renders an image for the page; its results are written, whether or not that succeeds."""
  from condseg_jax.report.page import collect
  try:
    return collect.predicted_case(name, result.volume, result.prediction, job.predictor,
                                  statistics=result.measures, warnings=result.findings)
  except Exception as error:
    print(f"warning: {printable(image.label)}: is not shown on the page: {_kind(error)}",
          file=sys.stderr)
    return collect.unshown_case(name)


def _kind(error: Exception) -> str:
  return printable(f"{type(error).__name__}: {error}")


def _outdated(image: InputImage, run: Run, masks: Iterable[Path]) -> str:
  """Returns why existing masks are not those of an image; "" if they are."""
  from condseg_jax.cli import inputs
  entry = run.earlier_case(image.stem)
  if entry.get("status", "done") == "failed":
    return "failed since its masks were written, predicted again"
  recorded = entry.get("input")
  unchanged = inputs.is_unchanged(image, recorded) if recorded else inputs.is_older(image, masks)
  return "" if unchanged else "was changed since its masks were written, predicted again"


def _segment(job: _Job, image: InputImage, title: str) -> _Result:
  """Segments one image and writes its results."""
  from condseg_jax.report import results
  volume, findings = _read(image, job.predictor, job.values)
  settings, store = job.settings, job.output / f"{image.stem}_probabilities.zarr"
  if job.values.probabilities:
    shutil.rmtree(store, ignore_errors=True)  # of an earlier or an interrupted run
    settings = settings | {"probabilities": str(store)}
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


def _set_aside(job: _Job, store: Path) -> Path:
  """Returns the folder for a refused result, after moving its probabilities there."""
  from condseg_jax.report import results
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


# --- Checks of the flags and of the input, before the network is loaded.
def _settings(values: flags.FlagValues) -> dict:
  """Returns fields of `infer.settings.Settings`, checked."""
  if values.partition and values.runtime != "jax":
    raise InputError("--partition", f"is not available with --runtime={values.runtime}",
                     "omit one of them", usage=True)
  if values.part >= values.num_parts:
    raise InputError(f"--part={values.part}", f"is out of range for {values.num_parts} parts",
                     f"0 to {values.num_parts - 1}", usage=True)
  settings = {name: values[name].value for name in SETTINGS}
  for name in ("threshold", "memory", "step"):
    value = values[name].value
    if value is not None and not math.isfinite(value):
      raise InputError(f"--{name}={value}", "is not a finite number", "see --help", usage=True)
  settings["within"] = dict(_pair(text) for text in values.within)
  if values.memory is not None:
    settings["memory_bytes"] = int(values.memory * 1e9)
  from condseg_jax.infer.settings import Settings
  Settings(**settings | {"two_pass": values.two_pass or bool(values.locator)})
  return settings


def _pair(text: str) -> tuple[str, str]:
  part, equals, whole = text.partition("=")
  if not equals:
    raise InputError(f"--within={text}", "is not of the form PART=WHOLE",
                     "e.g. --within=tumour=liver", usage=True)
  return part, whole


def _output_options(values: flags.FlagValues, images: list[InputImage]) -> OutputOptions:
  """Returns what to write; DICOM objects by default only if the extra is installed."""
  from condseg_jax.formats import dicom_results
  from condseg_jax.formats.dicom_source import extra_installed
  from condseg_jax.report.results import OutputOptions
  requested, kinds = values["dicom"].present > 0 or values.send, values.dicom
  if values.send and not kinds:
    raise InputError("--send", "needs a DICOM object", "give --dicom=seg", usage=True)
  if requested or extra_installed():
    dicom_results.check_kinds(kinds)
  else:
    kinds = []
    if any(image.path.is_dir() for image in images):
      print('no DICOM-SEG is written: pip install "condseg-jax[dicom]"', file=sys.stderr)
  return OutputOptions(values.separate or values.fusion == "independent", values.picture, kinds,
                       requested)


# --- One image.
def _read(image: InputImage, predictor: Predictor,
          values: flags.FlagValues) -> tuple[Volume, list[str]]:
  """Reads an image and checks its plausibility; returns it and the lines of the findings."""
  from condseg_jax.formats import files
  from condseg_jax.infer.image_check import check_image
  from condseg_jax.infer.image_check import enforce
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


if __name__ == "__main__":
  sys.exit(main())
