"""The settings of the levels of growth, from those of the network's training."""

from types import SimpleNamespace

import pytest

from condseg_jax.config import Config
from condseg_jax.grow.levels import settings
from condseg_jax.plan import Plan


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_network_that_was_split_over_devices_grows_on_any_machine(level):
  config = Config().override({"train.partition": 2, "conditioning.vector": "embedding"})
  record = SimpleNamespace(config=config, plan=Plan("ct", (3.0, 1.0, 1.0), (32, 64, 64)))
  growth = SimpleNamespace(record=record, stores=[SimpleNamespace(root="new")], training=[],
                           old_stores=(), new=("pancreas",), is_new=lambda _: True)
  found = settings(growth, level, "RUN")
  assert found.train.partition == 1 and found.init.source == "RUN"
  assert found.train.only_classes == (() if level == 2 else ("pancreas",))
