"""What is written of one segmented image: masks, picture, statistics, DICOM objects."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import logging
from pathlib import Path
import re
import time
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.dicom_results import write_results as write_dicom
from condseg_jax.geometry import Volume
from condseg_jax.predictor import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.report import statistics
from condseg_jax.system.atomic import write_text
from condseg_jax.train.record import devices
from condseg_jax.train.record import versions

log = logging.getLogger("condseg_jax")


class OutputOptions(NamedTuple):
  """What to write.

  Attributes:
    separate: a mask per class, as they may overlap, instead of one label map.
    picture: an overlay.
    dicom: kinds of DICOM objects (see `formats.dicom_results`), for DICOM series.
    dicom_must: whether they were asked for; otherwise one that cannot be made is left out.
    series: SeriesInstanceUID, where a DICOM folder holds several.
  """

  separate: bool = False
  picture: bool = True
  dicom: Sequence[str] = ()
  dicom_must: bool = True
  series: str = ""


def mask_files(folder: Path, stem: str, predictor: Predictor, names: Sequence[str],
               separate: bool) -> dict[str, Path]:
  """Class → file of its mask, or "" → file of the label map. Where they are, an image is done."""
  suffix = ".png" if predictor.model.ndim == 2 else ".nii.gz"
  if not separate:
    return {"": folder / f"{stem}{suffix}"}
  return {name: folder / f"{stem}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}{suffix}"
          for name in names}


def check_names(folder: Path, stems: Sequence[str], predictor: Predictor, names: Sequence[str],
                separate: bool) -> None:
  """Raises InputError where two results of a batch would be one file."""
  places: dict[Path, str] = {}
  for stem in stems:
    for name, path in mask_files(folder, stem, predictor, names, separate).items():
      told = f"{name or 'the label map'} of {stem}"
      if places.setdefault(path, told) != told:
        raise InputError(path, f"would hold both {places[path]} and {told}",
                         "name the images otherwise, or predict them into folders of their own",
                         usage=True)


def write(folder: Path, stem: str, source: Path, volume: Volume, prediction: Prediction,
          predictor: Predictor, wanted: OutputOptions, found: Mapping[str, Mapping],
          findings: Sequence[str] = ()) -> list[Path]:
  """Writes the results of one image; each file appears whole, the masks last.

  Args:
    folder: to write to.
    stem: of the names of the files.
    source: of the image.
    volume: the image.
    prediction: of `predictor`.
    wanted: what to write.
    found: of `structures`.
    findings: of its plausibility, for the statistics.

  Returns:
    The files.

  Raises:
    InputError: a mask would take the place of the image.
  """
  masks = mask_files(folder, stem, predictor, tuple(prediction.names), wanted.separate)
  if any(path.resolve() == source.resolve() for path in masks.values()):
    raise InputError(folder, "is the folder of the images", "choose another --output", usage=True)
  colors = dict(zip(predictor.table.names, predictor.table.colors, strict=True))
  path = folder / f"{stem}_statistics.json"
  statistics.write_statistics(path, volume, found, findings)
  written = [path]
  if wanted.picture:
    from condseg_jax.report.figures import draw_prediction
    path = folder / f"{stem}_overlay.png"
    draw_prediction(path, volume, prediction.label, predictor.table, stem,
                    modality=predictor.plan.modality)
    written.append(path)
  if wanted.dicom and source.is_dir():
    label, names = prediction.label, prediction.names
    if wanted.separate:
      label = Volume(np.stack(list(prediction.masks.values()), -1), volume.affine)
      names = {name: channel for channel, name in enumerate(prediction.masks, 1)}
    try:
      written += write_dicom(folder, stem, wanted.dicom, label, names, source, wanted.series,
                             colors=colors, model=f"step {predictor.step}")
    except InputError as error:
      if wanted.dicom_must:
        raise
      log.warning("no DICOM object is written (--dicom= asks for none): %s", error)
  for name, path in masks.items():
    if name:
      files.write_label(path, prediction.masks[name], volume.affine, {name: 1}, colors)
    else:
      files.write_label(path, prediction.label.array, volume.affine, prediction.names, colors)
  return [*masks.values(), *written]


def structures(volume: Volume, prediction: Prediction, separate: bool) -> dict[str, Mapping]:
  """Class → `report.statistics` of its structure."""
  if not separate:
    return statistics.label_statistics(volume, prediction.label.array, prediction.names,
                                       prediction.confidence)
  return {name: statistics.structure_statistics(volume, mask, prediction.confidence[name])
          for name, mask in prediction.masks.items()}


class Case:
  """What a case has come to; `files` is filled in by whoever writes them."""

  files: Sequence[Path] = ()


class Run:
  """run.json: what was asked for, with what, and what became of every image.

  Args:
    path: of the file; entries of an earlier run on other images stay.
    predictor: the network.
    classes: looked for.
    settings: of the prediction.
    same: whether an earlier run must have asked for the same.

  Raises:
    InputError: it has not.
  """

  def __init__(self, path: Path, predictor: Predictor, classes: Sequence[str], settings: Mapping,
               same: bool = False):
    self._path = path
    try:
      earlier = dict(json.loads(path.read_text(encoding="utf-8")))
      cases = dict(earlier["cases"])
    except (OSError, ValueError, KeyError, TypeError):
      earlier, cases = {}, {}
    asked = {"step": predictor.step, "classes": list(classes), "settings": dict(settings)}
    for key, value in asked.items():
      if same and earlier and earlier.get(key) != value:
        raise InputError(path, f"was begun with another {key}: {earlier.get(key)}, not {value}",
                         "choose another --output, or leave --continue out", usage=True)
    self._run = {**asked, "versions": versions(), "devices": devices(), "cases": cases}

  @contextlib.contextmanager
  def case(self, name: str) -> Iterator[Case]:
    """Notes one image when it is done, or why it failed."""
    case, start = Case(), time.perf_counter()
    entry = {"status": "failed"}
    try:
      yield case
      entry = {"status": "done", "files": [path.name for path in case.files]}
    except Exception as error:
      entry["reason"] = str(error)
      raise
    finally:
      entry["seconds"] = round(time.perf_counter() - start, 2)
      self._run["cases"][name] = entry
      write_text(self._path, json.dumps(self._run, indent=1) + "\n")
