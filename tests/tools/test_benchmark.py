"""The input suite runs and writes its rows; figures are not checked."""

import json

import pytest

from tools.benchmark import __main__ as command
from tools.benchmark import feeding
from tools.benchmark import reading


@pytest.mark.slow
def test_the_input_suite(tmp_path, monkeypatch):
  for name, value in {"SHAPE": (70, 66, 40), "SUBVOLUME": (8, 32, 32), "READS": 5, "ROUNDS": 2,
                      "COPIES": 3}.items():
    monkeypatch.setattr(reading, name, value)
  for name, value in {"STEPS": 2, "ROUNDS": 1, "READ_AHEAD": 1, "CT": (
      "phantom", {"data": {"subvolume": (8, 16, 16), "classes": (), "presets": {}}, "model": {
          "channels": 4, "growth": 4, "depth": (1, 1), "strides": ((2, 2, 2),)}})}.items():
    monkeypatch.setattr(feeding, name, value)
  monkeypatch.delenv("CONDSEG_TEST_DATA", raising=False)
  assert command.main(["input", f"--json={tmp_path / 'f.json'}", f"--data={tmp_path / 'd'}"]) == 0
  tree = json.loads((tmp_path / "f.json").read_text())
  assert tree["device"] and tree["versions"]["jax"]
  assert len(tree["rows"]) == 8
  for row in tree["rows"]:
    assert row["name"]
    if row["ours"] is None:
      assert "hippocampus" in row["name"] and "CONDSEG_TEST_DATA" in row["note"]
    elif row["peer"] is None:
      assert row["ratio"] is None and row["peak_bytes"] >= 0
    else:
      assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
