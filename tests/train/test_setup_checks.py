"""What may differ between a run and its going on."""

import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.plan import Plan
from condseg_jax.train.setup import check_same_model

MODEL = {"strides": [[2, 2]], "depth": [1, 1], "channels": 8}
CONDITION = {"position": "decoder"}


def check(before, now, condition=CONDITION):
  record = ModelRecord({"model": before, "conditioning": CONDITION}, ClassTable.create(["liver"]),
                       Plan("ct", (1.0, 1.0), (8, 8)))
  check_same_model(record, {"model": now, "conditioning": condition}, "run")


def test_a_setting_younger_than_the_run_had_its_default():
  check(MODEL, MODEL | {"deep_supervision": 0})
  check(MODEL | {"deep_supervision": 0}, MODEL)
  check(MODEL, MODEL | {"decoder_block": "dense", "rates": [6, 12, 18]})
  with pytest.raises(InputError, match="model.deep_supervision differs"):
    check(MODEL, MODEL | {"deep_supervision": 1})


def test_blocks_may_be_computed_otherwise():
  check(MODEL, MODEL | {"remat": True})
  check(MODEL | {"remat": True}, MODEL | {"remat": False})


@pytest.mark.parametrize("change", [{"channels": 16}, {"strides": [[1, 2]]}])
def test_another_model_is_refused(change):
  with pytest.raises(InputError, match=f"model.{next(iter(change))} differs"):
    check(MODEL, MODEL | change)
  with pytest.raises(InputError, match="conditioning.position differs"):
    check(MODEL, MODEL, {"position": "input"})
