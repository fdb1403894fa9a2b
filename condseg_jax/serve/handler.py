"""Handles one request in the worker: reads the body, predicts, writes the answer."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import logging
from pathlib import Path
import re
import time
import zipfile

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom_slices
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.infer.image_check import check_image
from condseg_jax.infer.image_check import enforce
from condseg_jax.infer.prediction import rating
from condseg_jax.infer.schedule import default_budget
from condseg_jax.infer.schedule import Schedule
from condseg_jax.predictor import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.report.results import structures
from condseg_jax.report.results import write_dicom
from condseg_jax.serve import dicom_answer
from condseg_jax.serve import preview
from condseg_jax.serve.multipart import Part
from condseg_jax.serve.multipart import write_form
from condseg_jax.serve.payload import read_body
from condseg_jax.serve.request import ANSWER
from condseg_jax.serve.request import DICOM_OUTPUTS
from condseg_jax.serve.request import disk_error
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import OUTPUTS
from condseg_jax.serve.request import SERIES
from condseg_jax.serve.request import to_http_error

# Output → file name suggested to the client; that of a label map gets its suffix.
NAMES = {"zip": "segmentation.zip", "label": "label", "statistics": "statistics.json", "page": "",
         "dicom_seg": "seg.dcm", "dicom_rtstruct": "rtstruct.dcm", "dicom": "dicom.zip"}

PROGRESS_SECONDS = 0.5  # between two messages
LOG = logging.getLogger("condseg_jax")


def handle(predictor: Predictor, folder: Path, request: Mapping, limits: Limits,
           on_phase: Callable[..., None]) -> dict:
  """Handles a request.

  Args:
    predictor: the network.
    folder: folder of the request with its body; the file `ANSWER` is written there.
    request: fields of `PredictRequest`.
    limits: of size and memory.
    on_phase: called with `reading` and, once the body has been read, `predicting`. Failures in the
      first phase are attributed to the body. Then repeatedly called with `progress` and `done`, the
      share of the prediction that is done.

  Returns:
    `status`; with 200 also `media` and `name` of the answer, otherwise its JSON line.
  """
  start = time.monotonic()
  if len(predictor.plan.spacing) == 2:
    request = {**request, "suffix": ".png"}
  on_phase("reading")
  try:
    volume, modality = _read(predictor, folder, request, limits)
    if request["output"] in DICOM_OUTPUTS and not (folder / SERIES).is_dir():
      raise HttpError(400, "output", f"{request['output']} needs a DICOM series",
                      "send the series as a zip archive, or request another output")
    on_phase("predicting")
    try:
      findings = check_image(volume, predictor.plan, predictor.training, modality=modality)
      findings = enforce("body", findings, force=request["force"], switch="force=1")
      budget = min(default_budget(), limits.memory - volume.array.nbytes)
      prediction = predictor.predict(volume, request["classes"], request["preset"],
                                     fusion=request["fusion"], threshold=request["threshold"],
                                     memory_bytes=budget, announce=_announce(on_phase))
    except InputError as error:
      raise to_http_error(error, 422, folder) from error
    except MemoryError as error:
      raise HttpError(413, "body", "is too large for the memory of the service",
                      "crop or resample the volume, or request fewer classes") from error
    statistics = _statistics(predictor, volume, prediction, request, time.monotonic() - start,
                             findings)
    try:
      media = _write(folder, predictor, volume, prediction, request, statistics)
    except InputError as error:
      if isinstance(error.__cause__, OSError):  # a file cannot be written
        raise disk_error(error.__cause__) from error
      raise to_http_error(error, 422, folder) from error
  except OSError as error:
    LOG.exception("a file of a request could not be written")
    return _failure(disk_error(error))
  except HttpError as error:
    return _failure(error)
  except Exception:
    LOG.exception("a prediction failed")
    return _failure(HttpError(500, "service", "the prediction failed", "see the service log"))
  finally:
    dicom_slices.clear_header_cache()
  name = NAMES[request["output"]]
  return {"status": 200, "media": media,
          "name": name + request["suffix"] if name == "label" else name}


def _announce(on_phase: Callable[..., None]) -> Callable[..., Callable[[int], None]]:
  """Returns what `Predictor.predict` calls with its schedule, to be told of progress."""
  def announce(schedule: Schedule, _seconds: float, _single: float) -> Callable[[int], None]:
    total, done, last = schedule.windows * schedule.passes, 0, time.monotonic()

    def update(windows: int) -> None:
      nonlocal done, last
      done += windows
      if time.monotonic() - last > PROGRESS_SECONDS:
        last = time.monotonic()
        on_phase("progress", done=done / total)
    return update
  return announce


def _failure(error: HttpError) -> dict:
  return {"status": error.status, **error.to_json()}


def _read(predictor: Predictor, folder: Path, request: Mapping,
          limits: Limits) -> tuple[Volume, str]:
  """Calls `read_body`; an unexpected failure of a reader is attributed to the body."""
  try:
    return read_body(folder, request["series"], predictor.plan, limits)
  except HttpError:
    raise
  except MemoryError as error:
    raise HttpError(413, "body", "is too large for the memory of the service",
                    "crop or resample the volume") from error
  except OSError as error:
    raise disk_error(error) from error
  except Exception as error:
    LOG.exception("a reader failed unexpectedly")
    raise HttpError(422, "body", "cannot be read",
                    "convert the image again, e.g. with dcm2niix") from error


def _statistics(predictor: Predictor, volume: Volume, prediction: Prediction, request: Mapping,
                seconds: float, findings: Sequence[str]) -> dict:
  """Returns the content of statistics.json."""
  entries = structures(volume, prediction, request["fusion"] == "independent")
  to_voxel = np.linalg.inv(volume.affine)
  space = volume.ndim == 3
  classes = {name: {"value": prediction.names[name], **entry,
                    "centroid_voxel": _voxel(to_voxel,
                                             entry["centroid_mm" if space else "centroid_px"])}
             for name, entry in entries.items()}
  for entry in classes.values():
    if "predicted_dice" in entry:
      entry["rating"] = rating(entry["predicted_dice"])
  return {"classes": classes, "findings": findings, "shape": list(volume.geometry.shape),
          **({"spacing_mm": [round(s, 6) for s in volume.spacing]} if space else {}),
          "fusion": request["fusion"],
          "threshold": request["threshold"], "model_step": predictor.step,
          "seconds": round(seconds, 3)}


def _voxel(to_voxel: np.ndarray, point_mm: Sequence[float] | None) -> list[float] | None:
  """Returns the array index of a point in RAS+ mm, or in pixels."""
  if point_mm is None:
    return None
  return [round(float(x), 2) for x in to_voxel[:-1] @ [*point_mm, 1.0]]


def _write(folder: Path, predictor: Predictor, volume: Volume, prediction: Prediction,
           request: Mapping, statistics: dict) -> str:
  """Writes the answer and returns its media type."""
  output, answer = request["output"], folder / ANSWER
  text = json.dumps(statistics, indent=1) + "\n"
  if output == "statistics":
    answer.write_text(text, encoding="utf-8")
    return OUTPUTS[output][0]
  if output in DICOM_OUTPUTS:
    _write_dicom(folder, predictor, prediction, request)
    return OUTPUTS[output][0]
  label = folder / f"label{request['suffix']}"
  files.write_label(label, prediction.label.array, prediction.label.affine, prediction.names)
  if output == "label":
    label.rename(answer)
    return "image/png" if label.suffix == ".png" else OUTPUTS[output][0]
  members = {label.name: label.read_bytes()}
  if request["fusion"] == "independent":
    members |= _masks(folder, prediction, request["suffix"])
  members["statistics.json"] = text.encode()
  if output == "zip":
    with zipfile.ZipFile(answer, "w") as archive:  # stored: the label maps are compressed already
      for name, content in members.items():
        archive.writestr(name, content)
    return OUTPUTS[output][0]
  image, labels, layout = preview.draw_view(volume, prediction.label, predictor.plan.modality)
  members |= {"image.png": image, "labels.png": labels, "layout.json": json.dumps(layout).encode()}
  return write_form(answer, [Part(name, content, name) for name, content in members.items()])


def _write_dicom(folder: Path, predictor: Predictor, prediction: Prediction,
                 request: Mapping) -> None:
  """Writes the DICOM objects of an answer."""
  kinds = DICOM_OUTPUTS[request["output"]]
  written = write_dicom(folder, prediction, predictor, kinds, folder / SERIES, request["series"],
                        separate=request["fusion"] == "independent")
  dicom_answer.pack(dict(zip(kinds, written, strict=True)), folder / ANSWER)


def _masks(folder: Path, prediction: Prediction, suffix: str) -> dict[str, bytes]:
  """Returns one mask file per class, because the masks may overlap: name → content."""
  masks = {}
  for name, mask in prediction.masks.items():
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    path = folder / f"mask_{safe}_{prediction.names[name]}{suffix}"
    files.write_label(path, mask, prediction.label.affine, {name: 1})
    masks[path.name] = path.read_bytes()
  return masks
