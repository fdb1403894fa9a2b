"""Translates a request for inference to one of this service, and its outcome back."""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
import zipfile

from condseg_jax.classes import ClassTable
from condseg_jax.serve.exchange import Answer
from condseg_jax.serve.exchange import json_answer
from condseg_jax.serve.monai.info import models
from condseg_jax.serve.multipart import Part
from condseg_jax.serve.multipart import write_form
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import MAX_VALUE
from condseg_jax.serve.request import PredictRequest
from condseg_jax.serve.request import read_request

# Value of `output` → output of this service.
OUTPUTS = {"all": "zip", "image": "label", "json": "statistics", "dicom_seg": "dicom_seg"}
SUFFIXES = (".nii.gz", ".nrrd")  # of label maps
OURS = ("classes", "preset", "fusion", "threshold", "force", "series")


def parse_params(text: str) -> dict:
  """Returns the JSON object in the form field `params`; {} for an empty one.

  Raises:
    HttpError: it is not a JSON object.
  """
  try:
    params = json.loads(text or "{}")
  except (ValueError, RecursionError):
    params = None
  if not isinstance(params, dict):
    raise HttpError(400, "params", "is not a JSON object",
                    'send, for example, {"classes": "liver"}')
  return params


def to_request(model: str, output: str, params: Mapping, table: ClassTable,
               fusions: Collection[str]) -> PredictRequest:
  """Returns the prediction that a client wants.

  Args:
    model: a key of `info.models`.
    output: a key of `OUTPUTS`; "" for `all`.
    params: of the request; `OURS` mean the same as in the query of /predict, others are ignored.
      `classes` may be a list.
    table: classes of the network.
    fusions: supported values of `fusion`.

  Raises:
    HttpError: an unknown model or output, or an invalid parameter.
  """
  known = models(table)
  if model not in known:
    raise HttpError(404, "model", f"{model[:MAX_VALUE]!r} is unknown",
                    f"use one of {', '.join(known)}")
  output = output or "all"
  if output not in OUTPUTS:
    raise HttpError(400, "output", f"unknown value {output[:MAX_VALUE]!r}",
                    f"use one of {', '.join(OUTPUTS)}")
  query = {name: _text(name, params[name]) for name in OURS if params.get(name) not in (None, "")}
  if model in table.presets and not query.keys() & {"classes", "preset"}:
    query["preset"] = model
  request = read_request({**query, "output": OUTPUTS[output]}.items(), "*/*", table, fusions)
  if request.fusion == "independent":
    raise HttpError(400, "fusion", "independent masks do not fit into one label map",
                    "use argmax, or POST /predict?fusion=independent")
  return dataclasses.replace(request, suffix=_result_suffix(params))


def compose(answer: Answer, output: str, params: Mapping, folder: Path) -> Answer:
  """Returns the answer in the form that clients expect.

  Args:
    answer: of this service, for the output `OUTPUTS[output]`.
    output: see `to_request`.
    params: of the request.
    folder: for temporary files.
  """
  output = output or "all"
  if output not in ("all", "json"):
    return answer
  assert isinstance(answer.content, Path)
  if output == "json":
    return json_answer(_result(json.loads(answer.content.read_bytes()), params))
  path = folder / "form"
  with zipfile.ZipFile(answer.content) as archive:
    statistics = json.loads(archive.read("statistics.json"))
    name = next(n for n in archive.namelist() if n.startswith("label."))
    told = json.dumps(_result(statistics, params)).encode()
    with archive.open(name) as label:
      media = write_form(path, [Part("params", told, media="application/json"),
                                Part("image", label, name, "application/octet-stream")])
  return Answer(path, media)


def _text(name: str, value: object) -> str:
  if isinstance(value, bool):
    return str(int(value))
  if isinstance(value, list) and all(isinstance(one, str) for one in value):
    return ",".join(value)
  if isinstance(value, str | int | float):
    return str(value)
  raise HttpError(400, name, "is neither a text nor a number", "see the config in GET /info/")


def _result_suffix(params: Mapping) -> str:
  suffix = params.get("result_extension") or SUFFIXES[0]
  if suffix not in SUFFIXES:
    raise HttpError(400, "result_extension", f"unknown value {str(suffix)[:MAX_VALUE]!r}",
                    f"use one of {', '.join(SUFFIXES)}")
  return suffix


def _result(statistics: Mapping, params: Mapping) -> dict:
  """Returns `params` of the answer."""
  classes = statistics["classes"]
  centroids = {name: [str(entry["value"]), *map(str, entry["centroid_voxel"])]
               for name, entry in classes.items() if entry["centroid_voxel"]}
  return {"label_names": {name: entry["value"] for name, entry in classes.items()},
          "centroids": centroids, "statistics": statistics,
          "ignored": sorted(params.keys() - {*OURS, "result_extension", "client_id"})}
