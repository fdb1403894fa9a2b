"""The start-up suite runs on tiny data; figures are not checked."""

from pathlib import Path

import pytest

from support.tiny import overrides
from support.tiny import write_datasets
from tools.benchmark import startup


@pytest.mark.slow
def test_the_startup_suite(tmp_path, monkeypatch):
  root = write_datasets(tmp_path / "phantoms")
  changes = {"data.root": None, "train.steps": None, "train.log_every": None,
             "train.eval_every": None, "data.hold_out": 0.0}
  monkeypatch.setattr(startup, "SETTINGS", overrides(root, **changes))
  monkeypatch.setattr(startup, "CONFIG", Path(startup.CONFIG).with_name("base.py"))
  monkeypatch.setattr(startup, "COMMANDS", ("train",))
  monkeypatch.setattr(startup, "ROUNDS", 1)
  rows = {row["name"]: row for row in startup.run(tmp_path)}
  assert set(rows) == {"condseg-train --help", "first step, cold", "first step, warm",
                       "first prediction, cold", "first prediction, warm",
                       "a finished run, asked again"}
  assert all(row["ours"] > 0 and row["peer"] is row["ratio"] is None for row in rows.values())
