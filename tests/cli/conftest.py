"""One tiny data folder and one run of two steps for all tests of commands; nobody changes them."""


import pytest

from condseg_jax.cli import train
from support.tiny import overrides
from support.tiny import write_datasets


@pytest.fixture(scope="session")
def root(tmp_path_factory):
  return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def run(root):
  workdir = root / "run"
  arguments = overrides(root, **{"data.cache": root / "cache", "train.steps": 2})
  assert train.main(["condseg-train", "--config=base", f"--workdir={workdir}", *arguments]) == 0
  return workdir
