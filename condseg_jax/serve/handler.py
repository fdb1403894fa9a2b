"""One order in the worker: read the body, predict, write the answer."""

from collections.abc import Callable
from collections.abc import Mapping
import json
import logging
from pathlib import Path
import re
import time
import uuid
import zipfile

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.infer.image_check import check_image
from condseg_jax.infer.image_check import enforce
from condseg_jax.predictor import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.report.results import structures
from condseg_jax.serve import preview
from condseg_jax.serve.request import ANSWER
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import no_disk
from condseg_jax.serve.request import OUTPUTS
from condseg_jax.serve.request import refused
from condseg_jax.serve.upload import read_body

LABEL = "label.nii.gz"
# Name under which an answer is saved.
NAMES = {"zip": "segmentation.zip", "label": LABEL, "statistics": "statistics.json", "page": ""}

LOG = logging.getLogger("condseg_jax")


def work(predictor: Predictor, folder: Path, order: Mapping, limits: Limits,
         phase: Callable[[str], None]) -> dict:
  """Carries out an order.

  Args:
    predictor: the network.
    folder: holds the body; the file `ANSWER` is written there.
    order: of `PredictRequest`.
    limits: of size.
    phase: is told `reading` and, when the body has been read, `predicting`: what fails before is
      the body's fault.

  Returns:
    `status`; with 200 `media` and `name` of the answer, else its line.
  """
  start = time.monotonic()
  phase("reading")
  try:
    volume, modality = _read(predictor, folder, order, limits)
    phase("predicting")
    try:
      findings = check_image(volume, predictor.plan, predictor.training, modality=modality)
      findings = enforce("body", findings, force=order["force"], switch="force=1")
      prediction = predictor.predict(volume, order["classes"], order["preset"],
                                     fusion=order["fusion"], threshold=order["threshold"])
    except InputError as error:
      raise refused(error, 422, folder) from error
    except MemoryError as error:
      raise HttpError(413, "body", "is a volume that does not fit into memory",
                    "cut or resample it, or ask for fewer classes") from error
    told = _told(predictor, volume, prediction, order, time.monotonic() - start, findings)
    try:
      media = _write(folder, predictor, volume, prediction, order, told)
    except InputError as error:  # says that a file cannot be written
      raise no_disk(error.__cause__) from error
  except OSError as error:
    LOG.exception("a file could not be written")
    refusal = no_disk(error)
    return {"status": refusal.status, **refusal.to_json()}
  except HttpError as refusal:
    return {"status": refusal.status, **refusal.to_json()}
  except Exception:
    LOG.exception("a prediction failed")
    return {"status": 500, "error": "service", "reason": "the prediction failed",
            "cure": "its log says why"}
  return {"status": 200, "media": media, "name": NAMES[order["output"]]}


def _read(predictor, folder, order, limits):
  """What `read_body` returns; whatever a reader stumbles over is the body's fault."""
  try:
    return read_body(folder, order["series"], predictor.plan, limits)
  except HttpError:
    raise
  except MemoryError as error:
    raise HttpError(413, "body", "does not fit into memory",
                    "cut or resample the volume") from error
  except OSError as error:
    raise no_disk(error) from error
  except Exception as error:
    LOG.exception("a body that no reader expected")
    raise HttpError(422, "body", "cannot be read",
                    "convert it again, e.g. with dcm2niix") from error


def _told(predictor: Predictor, volume, prediction: Prediction, order: Mapping,
          seconds: float, findings) -> dict:
  found = structures(volume, prediction, order["fusion"] == "independent")
  classes = {name: {"value": prediction.names[name], **entry} for name, entry in found.items()}
  return {"classes": classes, "findings": findings, "shape": list(volume.geometry.shape),
          "spacing_mm": [round(s, 6) for s in volume.spacing], "fusion": order["fusion"],
          "threshold": order["threshold"], "model_step": predictor.step,
          "seconds": round(seconds, 3)}


def _write(folder: Path, predictor, volume, prediction: Prediction, order: Mapping,
           told: dict) -> str:
  """Writes the answer and returns its media type."""
  output, answer = order["output"], folder / ANSWER
  text = json.dumps(told, indent=1) + "\n"
  if output == "statistics":
    answer.write_text(text, encoding="utf-8")
    return OUTPUTS[output][0]
  files.write_label(folder / LABEL, prediction.label.array, prediction.label.affine,
                    prediction.names)
  if output == "label":
    (folder / LABEL).rename(answer)
    return OUTPUTS[output][0]
  parts = {LABEL: (folder / LABEL).read_bytes()}
  if order["fusion"] == "independent":
    parts |= _masks(folder, prediction)
  parts["statistics.json"] = text.encode()
  if output == "zip":
    with zipfile.ZipFile(answer, "w") as packed:  # NIfTI is compressed already
      for name, content in parts.items():
        packed.writestr(name, content)
    return OUTPUTS[output][0]
  image, labels, layout = preview.draw_view(volume, prediction.label, predictor.plan.modality)
  parts |= {"image.png": image, "labels.png": labels, "layout.json": json.dumps(layout).encode()}
  return _write_form(answer, parts)


def _masks(folder: Path, prediction: Prediction) -> dict[str, bytes]:
  """One file for each mask, since they may overlap."""
  parts = {}
  for name, mask in prediction.masks.items():
    path = folder / f"mask_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}_{prediction.names[name]}.nii.gz"
    files.write_label(path, mask, prediction.label.affine, {name: 1})
    parts[path.name] = path.read_bytes()
  return parts


def _write_form(answer: Path, parts: Mapping[str, bytes]) -> str:
  """Writes multipart/form-data, which browsers take apart by themselves."""
  boundary = uuid.uuid4().hex
  with answer.open("wb") as stream:
    for name, content in parts.items():
      stream.write(f"--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; "
                   f"filename=\"{name}\"\r\n\r\n".encode())
      stream.write(content)
      stream.write(b"\r\n")
    stream.write(f"--{boundary}--\r\n".encode())
  return f"{OUTPUTS['page'][0]}; boundary={boundary}"
