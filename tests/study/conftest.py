"""A study of the tiny datasets, whose folders lie as those of the project do."""

from pathlib import Path
import shutil

import pytest

from support.tiny import write_datasets

ROOT = Path(__file__).parent.parent.parent

SETTINGS = {
    "data.subvolume": (8, 16, 16), "data.hold_out": 0.0, "model.strides": ((1, 2, 2),),
    "model.layers_per_level": (1, 1), "model.channels": 4, "model.growth": 4, "optimizer.warmup": 2,
    "optimizer.learning_rate": 0.01, "train.steps": 4, "train.log_every": 2}

STUDY = f'''"""The tiny study."""

from condseg_jax.study.declare import Member, Study, Variant

SETTINGS = {SETTINGS!r}


def get_study():
  member = Member("base", SETTINGS)
  cond_dec = Variant("cond_dec", (member,), "tiny")
  return Study("tiny", (cond_dec,
               cond_dec.replace(name="cond_2nd", conditioning__position="input")))
'''


@pytest.fixture(scope="session")
def experiments(tmp_path_factory):
  """A folder with `configs/`, and `studies/` with the tiny study."""
  folder = tmp_path_factory.mktemp("home") / "experiments"
  shutil.copytree(ROOT / "experiments" / "configs", folder / "configs")
  (folder / "studies").mkdir()
  (folder / "studies" / "tiny.py").write_text(STUDY)
  return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  """A folder of raw datasets with `tiny`."""
  folder = tmp_path_factory.mktemp("raw")
  write_datasets(folder / "tiny")
  return folder
