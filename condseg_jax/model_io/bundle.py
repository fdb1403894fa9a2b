"""The model bundle: one file with everything prediction needs, and the model's documentation.

    manifest.json                    format, and the SHA-256 of every other member
    model_card.md                    the model card
    facts.json                       facts on the card that the record does not hold
    config.json table.json plan.json … the model record as in a checkpoint, without paths
    parameters/PATH.npy              one array each, float32
    member_1/parameters/PATH.npy …   those of the further members of an ensemble
    encoder.onnx decoder.onnx        if the model was exported with ONNX

A bundle can hold an encoder alone, to start a training from (facts: `"part": "encoder"`); its table
then names the classes that the encoder was learned from.
"""

from collections.abc import Mapping
import dataclasses
import io
import json
import math
import tokenize
from typing import Any
from typing import NamedTuple

from flax import traverse_util
import jax
import numpy as np

from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.infer.fuse import Scaling
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.infer.prediction import DiceMap
from condseg_jax.model_io.archive import damaged
from condseg_jax.model_io.archive import read_archive
from condseg_jax.model_io.archive import write_archive
from condseg_jax.model_io.card import model_card
from condseg_jax.model_io.record import check_record
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.model_io.transfer import of_encoder
from condseg_jax.models.build import build_model
from condseg_jax.models.network import variable_shapes
from condseg_jax.train.state import variables

GRAPHS = ("encoder.onnx", "decoder.onnx")
_FOLDERS = {"params": "parameters/", "statistics": "statistics/"}
_KINDS = {"params": "parameter", "statistics": "statistic"}


class Bundle(NamedTuple):
  """The contents of a bundle.

  Attributes:
    record: config, class table and plan.
    params: the parameters for prediction.
    facts: see `card.run_facts`.
    graphs: encoder and decoder as ONNX, or empty.
    statistics: running moments of batch normalisation, if the network uses it.
    others: variables of the further members of an ensemble.
  """

  record: ModelRecord
  params: Mapping
  facts: Mapping[str, Any]
  graphs: tuple[bytes, ...] = ()
  statistics: Mapping = {}
  others: tuple[Mapping, ...] = ()

  @property
  def encoder_only(self) -> bool:
    """Whether the parameters are those of the encoder alone."""
    return self.facts.get("part") == "encoder"

  @property
  def variables(self) -> dict:
    """Returns the variables in the form that `model.apply` takes."""
    return variables(self.params, self.statistics)


def write_bundle(path, bundle: Bundle) -> str:
  """Writes a bundle and returns its SHA-256; equal models give equal files."""
  record = bundle.record._replace(config=without_paths(bundle.record.config))
  members = {f"{key}.json": _to_json(tree) for key, tree in record.to_json().items()}
  members["facts.json"] = _to_json(bundle.facts)
  members["model_card.md"] = model_card(record, bundle.params, bundle.facts,
                                        onnx=bool(bundle.graphs),
                                        networks=1 + len(bundle.others)).encode()
  for number, one in enumerate((bundle.variables, *bundle.others)):
    for kind, folder in _FOLDERS.items():
      for name, array in traverse_util.flatten_dict(one.get(kind, {}), sep="/").items():
        members[f"{_prefix(number)}{folder}{name}.npy"] = _to_npy(np.asarray(array))
  members |= dict(zip(GRAPHS, bundle.graphs, strict=False))
  version = 4 if record.calibration else 3 if bundle.others else 2
  return write_archive(path, members, version=version)


def read_bundle(path) -> Bundle:
  """Reads a bundle and puts its parameters on one device of this process.

  Raises:
    InputError: the file is missing, damaged, or not a bundle.
  """
  members = read_archive(path)
  try:
    facts = json.loads(members.pop("facts.json"))
    members.pop("model_card.md")
    graphs = tuple(members.pop(name) for name in GRAPHS if name in members)
    networks = [_arrays(members, "")]
    while any(name.startswith(_prefix(len(networks))) for name in members):
      networks.append(_arrays(members, _prefix(len(networks))))
    record = ModelRecord.from_json({name.removesuffix(".json"): json.loads(content)
                                    for name, content in members.items()})
    for arrays in networks:
      _check(record, arrays, facts)
    # Makes sure that the model can be exported again.
    model_card(record, networks[0]["params"], facts, onnx=False)
  except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
    reason = (f"{error.subject}: {error.reason}" if isinstance(error, InputError) else
              f"{type(error).__name__}: {error}")
    raise damaged(path, reason) from error
  if len(graphs) not in (0, len(GRAPHS)):
    raise damaged(path, f"one of {', '.join(GRAPHS)} is missing")
  trees = [{kind: traverse_util.unflatten_dict(a, sep="/") for kind, a in arrays.items()}
           for arrays in networks]
  first, *others = jax.device_put(trees, jax.local_devices()[0])
  return Bundle(record, first["params"], facts, graphs, first["statistics"],
                tuple(variables(other["params"], other["statistics"]) for other in others))


def without_paths(config: Config) -> Config:
  """Returns a config without the paths of the machine that it was trained on."""
  return dataclasses.replace(config, data=dataclasses.replace(config.data, root="", cache=""),
                             init=dataclasses.replace(config.init, source=""))


def _check(record: ModelRecord, arrays: Mapping[str, Mapping[str, np.ndarray]], facts) -> None:
  """Raises ValueError for an invalid record, or arrays that do not match its network."""
  if not isinstance(facts["step"], int):
    raise ValueError("facts.json has no step")
  check_record(record)
  for name, fields in record.cleaning.items():
    if not math.isfinite(ComponentFilter(**fields).minimum_ml):
      raise ValueError(f"cleaning: minimum_ml of {name} is not a number")
  for fields in record.calibration.values():
    Scaling(**fields)
  for fields in record.quality.values():
    DiceMap(**fields)
  settings = record.config.model
  layers = sum((*settings.layers_per_level, *(settings.decoder_layers_per_level or ())))
  if layers > len(arrays["params"]):  # before they are built: each has an array at least
    raise ValueError(f"config: {layers} layers, but only {len(arrays['params'])} arrays")
  model = build_model(record.config.model, record.config.conditioning, record.table.codes)
  if len(record.plan.subvolume) != model.ndim:
    raise ValueError("plan and network differ in their axes")
  if any(size % stride for size, stride in zip(record.plan.subvolume, model.stride, strict=True)):
    raise ValueError(f"plan: subvolume {record.plan.subvolume} is not a multiple of the network's "
                     f"stride {model.stride}")
  needed = variable_shapes(model, record.plan.channels)
  for kind, held in arrays.items():
    wanted = {name: x.shape for name, x in traverse_util.flatten_dict(needed.get(kind, {}),
                                                                      sep="/").items()
              if facts.get("part") != "encoder" or of_encoder(f"{kind}/{name}")}
    found = {name: array.shape for name, array in held.items()}
    for name in sorted(set(wanted) | set(found)):
      if wanted.get(name) != found.get(name):
        raise ValueError(f"{_KINDS[kind]} {name}: {found.get(name)}, the network has "
                         f"{wanted.get(name)}")
      if not np.isfinite(held[name]).all():
        raise ValueError(f"{_KINDS[kind]} {name} contains NaN or Inf")


def _prefix(number: int) -> str:
  """Returns the folder of a network in the archive, that of the first being its root."""
  return f"member_{number}/" if number else ""


def _arrays(members: dict[str, bytes], prefix: str) -> dict[str, dict[str, np.ndarray]]:
  """Takes the arrays of a network out of the members of an archive: kind → name → array."""
  return {kind: {name.removeprefix(prefix + folder).removesuffix(".npy"):
                 _from_npy(members.pop(name))
                 for name in list(members) if name.startswith(prefix + folder)}
          for kind, folder in _FOLDERS.items()}


def _to_json(tree) -> bytes:
  return json.dumps(tree, indent=1, sort_keys=True).encode()


def _to_npy(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.ascontiguousarray(array, "<f4"), (1, 0), allow_pickle=False)
  return buffer.getvalue()


def _from_npy(content: bytes) -> np.ndarray:
  """Returns the array after checking that its header matches the number of bytes."""
  buffer = io.BytesIO(content)
  if np.lib.format.read_magic(buffer) != (1, 0):
    raise ValueError("an array is of another version")
  try:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
  except (tokenize.TokenError, SyntaxError) as error:  # numpy parses the header as Python
    raise ValueError("an array has no header") from error
  data = buffer.read()
  if fortran or dtype != np.dtype("<f4") or len(data) != 4 * math.prod(shape):
    raise ValueError("an array is not of the kind and size that its header says")
  return np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
