"""Writes the results of segmented images: masks, overlay, statistics, DICOM objects, run.json."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import logging
from pathlib import Path
import re
import types
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.formats import dicom_results
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.infer.prediction import LEVEL
from condseg_jax.predictor import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.report import statistics
from condseg_jax.report.uncertainty import write_uncertainty
from condseg_jax.system.atomic import write_text
from condseg_jax.train.run_files import devices
from condseg_jax.train.run_files import versions

REFUSED = "refused"  # folder within the output, for results that are set aside

log = logging.getLogger("condseg_jax")


class OutputOptions(NamedTuple):
  """What to write for an image.

  Attributes:
    separate: one mask per class, as they may overlap, instead of one label map.
    picture: an overlay.
    dicom: kinds of DICOM objects for DICOM series (see `formats.dicom_results`).
    dicom_required: whether a DICOM object that cannot be made is an error instead of a warning.
    series: SeriesInstanceUID, if the DICOM folder holds several.
  """

  separate: bool = False
  picture: bool = True
  dicom: Sequence[str] = ()
  dicom_required: bool = True
  series: str = ""


def mask_files(folder: Path, stem: str, predictor: Predictor, names: Sequence[str],
               separate: bool) -> dict[str, Path]:
  """Returns class → file of its mask, or "" → file of the label map.

  These files are written last: an image is done once they exist.
  """
  suffix = ".png" if predictor.model.ndim == 2 else ".nii.gz"
  if not separate:
    return {"": folder / f"{stem}{suffix}"}
  return {name: folder / f"{stem}_{safe_name(name)}{suffix}" for name in names}


def safe_name(text: str) -> str:
  """Replaces the characters of a name that are not safe in file names."""
  return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def check_names(folder: Path, stems: Sequence[str], predictor: Predictor, names: Sequence[str],
                separate: bool, sources: Iterable[Path] = ()) -> None:
  """Raises InputError if two results of a batch would have the same file name, or that of an image.

  Args:
    folder: output folder.
    stems: beginnings of the file names of the images' results.
    predictor: the network.
    names: requested classes.
    separate: see `mask_files`.
    sources: the images.
  """
  inputs = {source.resolve() for source in sources}
  owners: dict[Path, str] = {}
  for stem in stems:
    for name, path in mask_files(folder, stem, predictor, names, separate).items():
      owner = f"{name or 'the label map'} of {stem}"
      if owners.setdefault(path, owner) != owner:
        raise InputError(path, f"is the file name of both {owners[path]} and {owner}",
                         "rename the images, or use separate output folders", usage=True)
      if path.resolve() in inputs:
        raise overwriting(path)


def overwriting(path: Path) -> InputError:
  """Returns the error for a result with the path of an input image."""
  return InputError(path, "the result would overwrite the input image",
                    "choose another output folder", usage=True)


def write(folder: Path, stem: str, source: Path, volume: Volume, prediction: Prediction,
          predictor: Predictor, options: OutputOptions, measures: Mapping[str, Mapping],
          findings: Sequence[str] = ()) -> list[Path]:
  """Writes the results of one image; each file appears atomically, the masks last.

  Args:
    folder: output folder.
    stem: beginning of the file names.
    source: file or DICOM folder of the image.
    volume: the image.
    prediction: its segmentation.
    predictor: the network that made it.
    options: what to write.
    measures: from `structures`.
    findings: lines about the plausibility of the image, for the statistics.

  Returns:
    The files, masks first.

  Raises:
    InputError: a file cannot be written.
  """
  masks = mask_files(folder, stem, predictor, tuple(prediction.names), options.separate)
  colors = dict(zip(predictor.table.names, predictor.table.colors, strict=True))
  path = folder / f"{stem}_statistics.json"
  statistics.write_statistics(path, volume, measures, findings)
  written = [path]
  if options.picture:
    from condseg_jax.report.figures import draw_prediction
    path = folder / f"{stem}_overlay.png"
    try:
      draw_prediction(path, volume, prediction.label, predictor.table, stem,
                      modality=predictor.plan.modality, uncertainty=prediction.uncertainty)
      written.append(path)
    except (InputError, OSError, MemoryError):
      raise
    except Exception as error:  # of the drawing library: the masks are worth more than a picture
      reason = printable(f"{type(error).__name__}: {error}")
      log.warning("%s: no overlay is drawn: %s", path, reason)
  if options.dicom and source.is_dir():
    try:
      written += write_dicom(folder, prediction, predictor, options.dicom, source, options.series,
                             separate=options.separate, stem=stem)
    except InputError as error:
      if options.dicom_required:
        raise
      log.warning("no DICOM object is written: %s", error)
  if prediction.uncertainty is not None:
    written.append(write_uncertainty(folder, stem, prediction.uncertainty))
  for name, path in masks.items():
    if name:
      files.write_label(path, prediction.masks[name], volume.affine, {name: 1}, colors)
    else:
      files.write_label(path, prediction.label.array, volume.affine, prediction.names, colors)
  return [*masks.values(), *written]


def write_dicom(folder: Path, prediction: Prediction, predictor: Predictor, kinds: Sequence[str],
                source: Path, series: str = "", *, separate: bool = False,
                stem: str = "result") -> list[Path]:
  """Writes the segmentation of a DICOM series as DICOM objects.

  Args:
    folder: output folder.
    prediction: the segmentation.
    predictor: the network that made it.
    kinds: see `formats.dicom_results`.
    source: the folder of the series.
    series: its SeriesInstanceUID, if the folder contains several series.
    separate: write the masks, which may overlap, instead of the label map.
    stem: beginning of the file names.

  Returns:
    The files, in the order of `kinds`.

  Raises:
    InputError: see `formats.dicom_results.write_results`.
  """
  label, names = prediction.label, prediction.names
  if separate:
    label = Volume(np.stack(list(prediction.masks.values()), -1), label.affine)
    names = {name: channel for channel, name in enumerate(prediction.masks, 1)}
  colors = dict(zip(predictor.table.names, predictor.table.colors, strict=True))
  remarks = {name: f"predicted Dice {entry['predicted_dice']:.2f}, {100 * LEVEL:.0f} % bound "
                   f"{entry['dice_bound']:.2f}"
             for name, entry in prediction.quality.items() if "predicted_dice" in entry}
  return dicom_results.write_results(folder, stem, kinds, label, names, source, series,
                                     colors=colors, remarks=remarks,
                                     model=f"step {predictor.step}")


def structures(volume: Volume, prediction: Prediction, separate: bool) -> dict[str, Mapping]:
  """Measures the segmented structures.

  Args:
    volume: the image.
    prediction: its segmentation.
    separate: measure the masks, which may overlap, instead of the label map.

  Returns:
    Class → see `statistics.structure_statistics`, and `infer.prediction.quality`.
  """
  if separate:
    measured = {name: statistics.structure_statistics(volume, mask, prediction.confidence[name])
                for name, mask in prediction.masks.items()}
  else:
    measured = statistics.label_statistics(volume, prediction.label.array, prediction.names,
                                           prediction.confidence)
  return {name: entry | prediction.quality.get(name, {}) for name, entry in measured.items()}


def refusal(measures: Mapping[str, Mapping], least: float) -> str:
  """Returns why a result is set aside: its structures with a lower predicted Dice; "" if none.

  Args:
    measures: from `structures`.
    least: the lowest predicted Dice that is accepted.
  """
  poor = [f"{name} {entry['predicted_dice']:.2f}" for name, entry in measures.items()
          if entry.get("predicted_dice", 1.0) < least]
  return f"predicted Dice below {least:g}: {', '.join(poor)}" if poor else ""


class CaseRecord:
  """What is recorded of one image; set while it is segmented.

  Attributes:
    source: what identifies the image's content: file, size, time of change, SHA-256.
    files: the files written.
    refusal: why the result is set aside, see `refusal`.
  """

  source: Mapping = types.MappingProxyType({})
  files: Sequence[Path] = ()
  refusal: str = ""

  def entry(self, seconds: float, error: Exception | None = None) -> dict[str, object]:
    """Returns the record, with the reason of a failure; see `Run.add`."""
    entry: dict[str, object] = {"status": "done", "files": [path.name for path in self.files]}
    if self.refusal:
      entry |= {"status": "refused", "reason": self.refusal}
    if error is not None:
      entry = {"status": "failed", "reason": str(error)}
    return entry | {"seconds": round(seconds, 2), "input": dict(self.source)}


class Run:
  """run.json: settings, versions and devices of a run, and the outcome of each image.

  Args:
    path: file to write; the entries of an earlier run on other images are kept.
    predictor: the network.
    classes: requested classes.
    settings: of the prediction.
    same: whether to require that an earlier run used the same network, classes and settings.

  Attributes:
    path: the file.
    problem: why the file could not be written at last; None if it is complete.

  Raises:
    InputError: an earlier run differs.
  """

  problem: InputError | None = None

  def __init__(self, path: Path, predictor: Predictor, classes: Sequence[str], settings: Mapping,
               same: bool = False):
    self.path = path
    try:
      earlier = dict(json.loads(path.read_text(encoding="utf-8")))
      cases = {name: dict(entry) for name, entry in earlier["cases"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
      earlier, cases = {}, {}
    request = {"step": predictor.step, "classes": list(classes), "settings": dict(settings)}
    for key, value in request.items():
      if same and earlier and earlier.get(key) != value:
        raise InputError(path, f"the earlier run used {key} {earlier.get(key)}, this one {value}",
                         "choose another output folder, or do not continue", usage=True)
    self._run = {**request, "versions": versions(), "devices": devices(), "cases": cases}

  def earlier_case(self, name: str) -> Mapping:
    """Returns what was recorded of an image; {} if nothing was."""
    return self._run["cases"].get(name, {})

  def add(self, name: str, entry: Mapping) -> None:
    """Records the outcome of one image, see `CaseRecord`.

    A record that cannot be written costs no result: see `problem`.
    """
    self._run["cases"][name] = dict(entry)
    try:
      write_text(self.path, json.dumps(self._run, indent=1) + "\n")
      self.problem = None
    except InputError as error:
      self.problem = error
