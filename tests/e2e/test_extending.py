"""The guides keep their word: a mechanism, a loss, a metric, an augmentation and a network are one
function and one config line each."""

import json
from pathlib import Path
import re

import numpy as np
import pytest

import condseg_jax
from condseg_jax.cli import evaluate
from condseg_jax.cli.train import main
from condseg_jax.losses import OBJECTIVES
from condseg_jax.metrics import METRICS
from condseg_jax.models.build import NETWORKS
from condseg_jax.models.conditioning import MECHANISMS
from condseg_jax.train.augment import AUGMENTATIONS
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


@pytest.mark.slow
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


@pytest.fixture
def config_lines():
  """The config lines of docs/extending.md, while its functions are registered."""
  text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
  registries = (OBJECTIVES, METRICS, AUGMENTATIONS, NETWORKS)
  before = [dict(registry) for registry in registries]
  scope = {}
  for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
    exec(compile(code, "docs/extending.md", "exec"), scope)
  assert [len(r) - len(b) for r, b in zip(registries, before, strict=True)] == [1, 1, 1, 1]
  yield re.findall(r"^config\.[^\n]+", text, re.MULTILINE)
  for registry, entries in zip(registries, before, strict=True):
    registry.clear()
    registry.update(entries)


@pytest.mark.slow
def test_what_the_guide_registers_trains_and_scores(config_lines, tmp_path):
  """All of them in one run; the run holds the settings, the summary the metric."""
  data, run, scores = write_datasets(tmp_path / "data"), tmp_path / "run", tmp_path / "scores"
  config = tmp_path / "mine.py"
  lines = "".join(f"  {line}\n" for line in config_lines)
  config.write_text("from condseg_jax.configs import base\n\n\ndef get_config():\n"
                    f"  config = base.get_config()\n{lines}  return config\n")
  flags = overrides(data, **{"train.steps": 2, "data.cache": tmp_path / "cache",
                             "data.hold_out": 0.0, "model.growth": 4})
  assert main(["condseg-train", f"--config={config}", f"--workdir={run}", *flags]) == 0
  settings = json.loads((run / "run.json").read_text())["config"]
  assert settings["loss"]["objective"] == "tversky"
  assert settings["augment"]["extra"] == {"fade": 0.3}
  trained = condseg_jax.load(run)
  assert trained.model.channels == 4 and trained.model.encoder_block == "residual"
  assert np.isfinite(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
  assert evaluate.main(["condseg-evaluate", f"--workdir={run}", f"--data={data / 'test'}",
                        f"--out={scores}"]) == 0
  summary = json.loads((scores / "summary.json").read_text())
  assert set(summary["classes"]["ball"]["precision"]) == {"mean", "ci95", "n"}
