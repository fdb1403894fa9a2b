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
  return FLModel(metrics={"none": 0.0}, meta={_CONTENT: "{}"})


def description_message(description: Description) -> FLModel:
  return FLModel(metrics={"none": 0.0}, meta={_CONTENT: json.dumps(description.to_json())})


def read_description(message: FLModel) -> Description:
  """Raises ValueError if it is none."""
  return Description.from_json(_content(message))


def train_task(number: int, record: ModelRecord, rounds: dict[str, Any], taught: Sequence[str],
               arrays: Arrays) -> FLModel:
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
  return FLModel(params_type=ParamsType.FULL, params=dict(update.arrays), meta={
      _CONTENT: json.dumps({"samples": dict(update.samples), "dice": dict(update.dice)})})


def read_update(message: FLModel) -> Update:
  """Raises ValueError if it is none; its values are checked by `average.fault`."""
  content = _content(message)
  samples, dice = content.get("samples"), content.get("dice")
  if not isinstance(message.params, dict) or not isinstance(samples, dict) or not isinstance(
      dice, dict):
    raise ValueError("not an update")
  return Update(message.params, samples, dice)


def _content(message: FLModel) -> dict[str, Any]:
  tree = json.loads((message.meta or {}).get(_CONTENT, ""))
  if not isinstance(tree, dict):
    raise ValueError("not a message")
  return tree
