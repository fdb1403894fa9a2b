"""What server and sites tell each other, as FLARE's models: numbers, names and arrays alone."""

from collections.abc import Sequence
import json
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.fl_model import ParamsType

from condseg_jax.federated.average import Arrays
from condseg_jax.federated.average import Update
from condseg_jax.federated.description import Description
from condseg_jax.model_io.record import ModelRecord

DESCRIBE, TRAIN = "describe", "train"  # the tasks
_CONTENT = "content"  # JSON


def describe_task() -> FLModel:
  """Asks a site what it has."""
  return FLModel(metrics={"none": 0.0}, meta={_CONTENT: "{}"})


def description_message(description: Description) -> FLModel:
  """Answers `describe_task`."""
  return FLModel(metrics={"none": 0.0}, meta={_CONTENT: json.dumps(description.to_json())})


def read_description(message: FLModel) -> Description:
  """Returns what a site has; ValueError if that is no description."""
  return Description.from_json(_content(message))


def train_task(number: int, record: ModelRecord, rounds: dict[str, Any], taught: Sequence[str],
               arrays: Arrays) -> FLModel:
  """Asks a site for a round of training; see `federated.site.Site.train`."""
  content = {"round": number, "record": record.to_json(), "rounds": rounds, "taught": list(taught)}
  return FLModel(params_type=ParamsType.FULL, params=dict(arrays),
                 meta={_CONTENT: json.dumps(content)})


def read_train_task(message: FLModel) -> tuple[dict[str, Any], Arrays]:
  """Returns `round`, `record`, `rounds`, `taught`, and the arrays; ValueError if it is none."""
  content = _content(message)
  expected = {"round", "record", "rounds", "taught"}
  if set(content) != expected or not isinstance(message.params, dict):
    raise ValueError("not a task")
  return {**content, "record": ModelRecord.from_json(content["record"])}, message.params


def update_message(update: Update) -> FLModel:
  """Answers `train_task`."""
  return FLModel(params_type=ParamsType.FULL, params=dict(update.arrays), meta={
      _CONTENT: json.dumps({"samples": dict(update.samples), "dice": dict(update.dice)})})


def read_update(message: FLModel) -> Update:
  """Returns what a site sent, ValueError if it is none; `average.fault` checks its values."""
  content = _content(message)
  samples, dice = content.get("samples"), content.get("dice")
  if not isinstance(message.params, dict) or not isinstance(samples, dict) or not isinstance(
      dice, dict):
    raise ValueError("not an update")
  return Update(message.params, samples, dice)


def _content(message: FLModel) -> dict[str, Any]:
  text = (message.meta or {}).get(_CONTENT)
  try:
    tree = json.loads(text) if isinstance(text, str) else None
  except RecursionError:
    tree = None
  if not isinstance(tree, dict):
    raise ValueError("not a message")
  return tree
