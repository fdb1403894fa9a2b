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
--num_parts=N and --part=0 … N-1, each with its own records (run_PART.json), or --cluster deals the
images to the workers of a Dask cluster (extra `cluster`). --continue resumes an interrupted run:
the masks of an image are written last and atomically, and kept while the image is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
import functools
import math
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.cluster.connect import connected
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

if TYPE_CHECKING:  # imported late, so that --help is fast
  from condseg_jax.cli.inputs import InputImage
  from condseg_jax.cli.staging import Output
  from condseg_jax.report.results import OutputOptions

SETTINGS = ("fusion", "threshold", "step", "tta", "fast", "two_pass", "partition",
            "priors", "clean")


def main(argv: list[str] | None = None) -> int:
  """Runs the command and returns its exit code."""
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv,
                   in_buckets=("workdir", "locator", "input", "output"))


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
  switch("uncertainty", False, "Also write how undecided the prediction is at every voxel, in "
         "bits: NAME_uncertainty.nii.gz, and a column of the overlay.")
  number("refuse_below", None, "Predicted Dice below which the results of an image are set aside; "
         "for networks trained with --folds.", upper_bound=1.0)
  switch("picture", True, "Write an overlay of every result.")
  shell.define_cluster(values)
  shell.define_report(values)


def _work(values: flags.FlagValues) -> int:
  # Everything that needs no network is checked before it is loaded.
  shell.require(values, "workdir", "input", "output")
  shell.check_cluster(values, "input", "output")
  settings = _settings(values)
  from condseg_jax.cli import staging
  from condseg_jax.dicomweb.address import is_address
  from condseg_jax.system.buckets import is_bucket
  if is_address(values.input):
    from condseg_jax.cli.remote import fetched
    with (fetched(values.input, values.series) as remote,
          staging.output(values.output) as output):
      return _predict(values, settings, output, remote.images, remote.send if values.send else None)
  if values.send:
    raise InputError("--send", "needs a DICOMweb server", "give --input=dicomweb+http://…",
                     usage=True)
  from condseg_jax.cli import inputs
  if is_bucket(values.input) and values.input.endswith(".txt"):
    raise InputError("--input", f"{values.input}: lists of images must be local",
                     "give a folder or an image in the bucket", usage=True)
  with staging.fetched(values.input) as source, staging.output(values.output) as output:
    images = inputs.list_inputs(source.path, values.series)
    if source.path != Path(values.input):
      images = [image._replace(origin=source.name(image.path)) for image in images]
    return _predict(values, settings, output, images)


def _predict(values: flags.FlagValues, settings: dict, place: Output, images: list[InputImage],
             send: Callable[[Sequence[Path]], None] | None = None) -> int:
  from condseg_jax.cli import inputs
  options, output = _output_options(values, images), place.path
  inputs.check_apart(images, Path(values.input), output, options.separate)
  if any(image.origin.rpartition("/")[0] == place.address.rstrip("/") for image in images):
    raise InputError(place.address, "is the folder of the input images",
                     "choose another output folder", usage=True)
  inputs.check_writable(output)

  from condseg_jax.cli.network import leave_devices
  from condseg_jax.cli.network import Network
  from condseg_jax.cli.predict_batch import Batch
  from condseg_jax.cli.predict_batch import segment_all
  from condseg_jax.cli.predict_image import Job
  from condseg_jax.report import results
  from condseg_jax.report.page import collect
  from condseg_jax.system.lock import held

  if values.cluster:
    leave_devices()
  network = Network.of(values, values.runtime)
  predictor = network.load()
  ids = predictor.table.select(values.classes, values.preset)
  classes = [predictor.table.names[i] for i in ids]
  if values.refuse_below is not None and predictor.quality.keys().isdisjoint(classes):
    raise InputError("--refuse_below", f"{values.workdir} predicts no Dice of these classes",
                     "train with --folds, with 9 cases of a class or more", usage=True)
  results.check_names(output, [image.stem for image in images], predictor, classes,
                      options.separate, [image.path for image in images])
  suffix = "" if values.num_parts == 1 else f"_{values.part}"  # other parts write at the same time
  with connected(values.cluster) as cluster, held(place.address, suffix):
    record = output / f"run{suffix}.json"
    place.fetch(record)
    more = ("locator", "members", "refuse_below", "uncertainty")
    recorded = settings | {name: values[name].value for name in more if values[name].value}
    run = results.Run(record, predictor, classes, recorded,
                      same=values["continue"].value)
    outputs = ("probabilities", "uncertainty", "refuse_below", "report", "force")
    job = Job(network, predictor.step, place, classes, settings, options, send=send,
              in_worker=cluster is not None, **{name: values[name].value for name in outputs})
    names = collect.case_names([image.stem for image in images], values.report_names)
    mine = list(zip(images, names, strict=True))[values.part::values.num_parts]
    batch = Batch(job, predictor, run, output / f"report{suffix}.html", values.report_names,
                  values["continue"].value)
    return segment_all(batch, mine, cluster)


def _settings(values: flags.FlagValues) -> dict:
  """Returns fields of `infer.settings.Settings`, checked."""
  if values.partition and values.runtime != "jax":
    raise InputError("--partition", f"is not available with --runtime={values.runtime}",
                     "omit one of them", usage=True)
  if values.cluster and values.num_parts > 1:
    raise InputError("--cluster", "deals the images to workers, and --num_parts to machines",
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


if __name__ == "__main__":
  sys.exit(main())
