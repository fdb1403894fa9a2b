"""condseg-predict --workdir=RUN --input=FILE_OR_DIR --output=DIR [--classes=… | --preset=…]

Segments images with a trained network: one label map per image, on the image's own grid.

  condseg-predict --workdir=runs/ct --input=scan.nii.gz --output=masks --classes=liver,spleen

With --fusion=independent one mask per class is written, which may overlap. Volumes, intensities and
places of the structures are in STEM_statistics.json, what was done in run.json; with --report a
page, report.html, shows all of it and opens without a network. The result of a DICOM series is
written as DICOM-SEG, too (extra `dicom`); --dicom=seg,rtstruct adds outlines, --dicom= leaves both
out. Unless it was asked for, one that cannot be made is left out with a warning.

An image that is plainly not of the kind that the network was trained on is refused. A batch goes on
past a bad image and names it at the end. Several machines share a folder of images with
--num_parts=N and --part=0 … N-1, each with records of its own (run_PART.json); a run that was
interrupted goes on with --continue, since the masks of an image are written last and whole.
"""

import functools
import math
from pathlib import Path
import shutil
import sys

from absl import flags

from condseg_jax.cli import shell
from condseg_jax.errors import InputError
from condseg_jax.system.large_pages import restart_with_large_pages

SETTINGS = ("fusion", "threshold", "step", "tta", "fast", "two_pass", "partition",
            "priors", "clean")


def main(argv=None) -> int:
  restart_with_large_pages(argv)
  return shell.run(__doc__, _define, _work, argv)


def _define(values: flags.FlagValues) -> None:
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  switch = functools.partial(flags.DEFINE_bool, flag_values=values)
  several = functools.partial(flags.DEFINE_list, flag_values=values)
  number = functools.partial(flags.DEFINE_float, lower_bound=0.0, flag_values=values)
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  shell.define_model(values)
  shell.define_locator(values)
  text("input", "", "An image, a folder of images, the folder of a DICOM series, or a text file "
       "that names such, one a line.")
  text("series", "", "SeriesInstanceUID, where a DICOM folder holds several.")
  text("output", "", "Folder for the results.")
  several("classes", [], "Classes to look for; all when empty.")
  text("preset", "", "A named group of classes.")
  flags.DEFINE_enum("fusion", "argmax", ("argmax", "softmax", "independent"),
                    "How classes share voxels.", flag_values=values)
  several("within", [], "PART=WHOLE, as in tumour=liver: a part takes its voxels from the whole, "
          "and pieces that do not touch it are removed.")
  number("threshold", 0.5, "Probability from which a voxel belongs to a class.", upper_bound=1.0)
  flags.DEFINE_float("step", 0.5, "Distance of windows as a part of the window.", lower_bound=0.05,
                     upper_bound=1.0, flag_values=values)
  switch("tta", False, "Average over mirror images, along the axes that the training mirrored: "
         "slower.")
  switch("priors", False, "Weigh classes by where the training masks show them.")
  switch("clean", True, "Remove pieces as was best for the cases held out in training.")
  switch("fast", False, "At 1.25 times the spacing: quicker and coarser.")
  switch("two_pass", False, "Find where every class is by a coarser look first: for volumes much "
         "larger than what is looked for.")
  switch("partition", False, "Each image in one pass instead of windows, split over all devices: "
         "for accelerators that hold it only together.")
  flags.DEFINE_enum("runtime", "jax", ("jax", "onnx"), "onnx: onnxruntime on the CPU, for a bundle "
                    "exported with --onnx.", flag_values=values)
  number("memory", None, "Gigabytes that prediction may take beside the image as read; a quarter "
         "of the machine's, at most 4, when not given.")
  switch("force", False, "Go on with images that look implausible.")
  whole("num_parts", 1, "Parts that the images are dealt to.", lower_bound=1)
  whole("part", 0, "The part to work on.", lower_bound=0)
  switch("continue", False, "Skip images whose results are there.")
  several("dicom", ["seg"], "Written beside the masks of a DICOM series: seg, rtstruct.")
  switch("separate", False, "A mask for each class in place of the label map.")
  switch("probabilities", False, "Also write the probabilities of all classes, as zarr.")
  switch("picture", True, "Write a picture of every result beside it.")
  shell.define_report(values)


def _work(values: flags.FlagValues) -> int:
  shell.need(values, "workdir", "input", "output")
  if values.partition and values.runtime != "jax":
    raise InputError("--partition", "is done by JAX alone", "leave --runtime out", usage=True)
  from condseg_jax.formats import files
  from condseg_jax.predictor import load
  from condseg_jax.report import results
  from condseg_jax.report.page import collect
  from condseg_jax.system.cache import enable_compilation_cache

  if values.part >= values.num_parts:
    raise InputError(f"--part={values.part}", f"there are {values.num_parts} parts",
                     f"0 to {values.num_parts - 1}", usage=True)
  enable_compilation_cache()
  given = Path(values.input)
  if given.name in ("", ".."):  # results are named after it
    given = given.resolve()
  found = files.list_images(given)
  stems = [files.stem(path) for path in found]
  shown_names = collect.case_names(stems, values.report_names)
  images = list(zip(found, stems, shown_names, strict=True))[values.part::values.num_parts]
  wanted = results.OutputOptions(values.separate or values.fusion == "independent", values.picture,
                          _dicom_kinds(values, found), values["dicom"].present > 0, values.series)
  predictor = load(values.workdir, values.checkpoint, values.runtime, values.locator)
  ids = predictor.table.select(values.classes, values.preset)
  names = [predictor.table.names[i] for i in ids]
  settings = _settings(values)
  output = Path(values.output)
  output.mkdir(parents=True, exist_ok=True)
  asked = settings | ({"locator": values.locator} if values.locator else {})
  results.check_names(output, stems, predictor, names, wanted.separate)
  part = "" if values.num_parts == 1 else f"_{values.part}"  # others write at the same time
  run = results.Run(output / f"run{part}.json", predictor, names, asked,
                    same=values["continue"].value)
  failed, shown = [], []
  for number, (path, stem, shown_name) in enumerate(images, 1):
    title = f"{number}/{len(images)} {stem}"
    masks = results.mask_files(output, stem, predictor, names, wanted.separate)
    if values["continue"].value and all(mask.exists() for mask in masks.values()):
      print(f"{title}: is there", flush=True)
      shown.append(collect.earlier_case(shown_name))
      continue
    try:
      with run.case(stem) as case:
        volume, findings = _read(path, predictor, values)
        announce = functools.partial(_announce, title, settings.get("memory_bytes", math.inf))
        if values.probabilities:
          planes = output / f"{stem}_probabilities.zarr"
          shutil.rmtree(planes, ignore_errors=True)  # of an earlier run, or of one cut off
          settings["probabilities"] = str(planes)
        try:
          prediction = predictor.predict(
              volume, names, announce=announce, **settings)
        except InputError as error:
          raise error if error.usage else InputError(path, error.reason, error.cure) from error
        structures = results.structures(volume, prediction, wanted.separate)
        case.files = results.write(output, stem, path, volume, prediction, predictor, wanted,
                                   structures, findings)
      print("  ".join(map(str, case.files)), flush=True)
      if values.report:
        collect.add(shown, collect.predicted_case(shown_name, volume, prediction, predictor,
                                                  statistics=structures, warnings=findings))
    except (InputError, OSError, MemoryError) as error:
      if isinstance(error, OSError):
        error = InputError(path, error.strerror or str(error), "check permissions and free space")
      elif isinstance(error, MemoryError):
        error = InputError(path, "does not fit into memory", "cut or resample it, give a smaller "
                           "--memory, or take a machine with more")
      if len(images) == 1 or error.usage:
        raise error from None
      failed.append(error)  # one bad image does not stop the others
      shown.append(collect.failed_case(shown_name, error, path, values.report_names))
  if values.report:
    print(collect.write_report(output / f"report{part}.html", shown, predictor))
  for error in failed:
    print(f"failed: {error}", file=sys.stderr)
  return 1 if failed else 0


def _settings(values) -> dict:
  """Fields of `infer.settings.Settings`."""
  settings = {name: values[name].value for name in SETTINGS}
  for name in ("threshold", "memory", "step"):
    if values[name].value is not None and not math.isfinite(values[name].value):
      raise InputError(f"--{name}={values[name].value}", "is no finite number", "give one",
                       usage=True)
  settings["within"] = dict(_pair(text) for text in values.within)
  if values.memory is not None:
    settings["memory_bytes"] = int(values.memory * 1e9)
  return settings


def _pair(text: str) -> tuple[str, str]:
  part, equals, whole = text.partition("=")
  if not equals:
    raise InputError(f"--within={text}", "is no PART=WHOLE", "as in --within=tumour=liver",
                     usage=True)
  return part, whole


def _dicom_kinds(values, images) -> list[str]:
  """The DICOM objects to write; those of the default only where the extra is installed."""
  from condseg_jax.formats import dicom_results
  from condseg_jax.formats.dicom_source import extra_installed
  if values["dicom"].present or extra_installed():
    dicom_results.check_kinds(values.dicom)
    return values.dicom
  if any(path.is_dir() for path in images):
    print('no DICOM-SEG is written: pip install "condseg-jax[dicom]"', file=sys.stderr)
  return []


def _read(path: Path, predictor, values):
  """An image and what there is to say of its plausibility."""
  from condseg_jax.formats import files
  from condseg_jax.infer.image_check import check_image
  from condseg_jax.infer.image_check import enforce
  volume = files.read_volume(path, values.series)
  findings = enforce(path, check_image(volume, predictor.plan, predictor.training,
                                       modality=files.modality(path, values.series)),
                     force=values.force)
  for finding in findings:
    print(f"warning: {path}: {finding}", file=sys.stderr)
  return volume, findings


def _announce(title: str, budget: float, plan, seconds: float, single: float):
  """Says what is to come, and shows how far it is."""
  import tqdm
  text = (f"{title}: {plan.windows} windows, about {seconds:.0f} s, {plan.bytes / 1e6:.0f} MB "
          "beside program and image")
  if plan.bytes > budget:
    text += f" (more than the {budget / 1e6:.0f} MB asked for: there is no smaller way)"
  if plan.passes > 1:
    text += (f" in {plan.passes} passes of {plan.classes} classes; in a single one "
             f"{plan.whole_bytes / 1e6:.0f} MB, {single:.0f} s (--memory)")
  print(text, file=sys.stderr, flush=True)
  return tqdm.tqdm(total=plan.windows * plan.passes, unit="window", leave=False, delay=1).update


if __name__ == "__main__":
  sys.exit(main())
