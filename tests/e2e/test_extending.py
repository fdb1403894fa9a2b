"""CONTRIBUTING.md keeps its word: a mechanism is one function and one config line."""

from pathlib import Path
import re

import numpy as np
import pytest

import condseg_jax
from condseg_jax.cli.train import main
from condseg_jax.models.conditioning import MECHANISMS
from support.tiny import overrides
from support.tiny import write_datasets

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def tint():
  """The function of the code block, which is a mechanism as long as this lasts."""
  text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
  (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  before, scope = dict(MECHANISMS), {}
  exec(compile(code, "CONTRIBUTING.md", "exec"), scope)
  yield scope["tint"]
  MECHANISMS.clear()
  MECHANISMS.update(before)


def test_the_mechanism_of_the_guide_trains(tint, tmp_path):
  assert list(MECHANISMS)[-1] == "tint"
  data, run = write_datasets(tmp_path / "data"), tmp_path / "run"
  flags = overrides(data, **{"train.steps": 2, "data.cache": tmp_path / "cache",
                             "data.hold_out": 0.0, "conditioning.mechanism": "tint"})
  config = ROOT / "experiments" / "configs" / "base.py"
  assert main(["condseg-train", f"--config={config}", f"--workdir={run}", *flags]) == 0
  trained = condseg_jax.load(run)
  assert trained.model.mechanism == "tint" and trained.step == 2
  told = trained.variables["params"]["merge_0"]["join"]["condition"]
  assert set(told) == {"tint"} and np.all(np.isfinite(told["tint"]["kernel"]))
