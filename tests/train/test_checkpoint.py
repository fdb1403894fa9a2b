"""Which checkpoint is meant, which are kept, and what of one predicts."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.plan import Plan
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.state import TrainState


def test_the_best_and_the_last_are_kept_and_the_averaged_parameters_predict(tmp_path):
  state = TrainState.create({"params": {"w": jnp.zeros(2)}}, optax.sgd(1.0, momentum=0.9), ema=True)
  state = state.replace(ema={"w": jnp.ones(2)})
  record = ModelRecord(Config(), ClassTable.create(["liver"]), Plan("ct", (1.0, 1.0), (8, 8)))
  kept = Checkpoints(tmp_path)
  for step, dice in ((1, 0.9), (2, 0.5), (3, None)):
    kept.save(state.replace(step=jnp.int32(step)), record, dice)
  kept.wait()
  assert (kept.pick("best"), kept.pick("last"), kept.pick("1")) == (1, 3, 1)
  with pytest.raises(InputError, match="there are: last, best, 1, 3"):
    kept.pick("2")
  np.testing.assert_array_equal(kept.restore_variables(1)["params"]["w"], 1)
  kept.close()
