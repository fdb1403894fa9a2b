"""The cross-validated run that several files look at, trained once."""

import pytest

from condseg_jax.cli import train
from support.folds import arguments
from support.folds import write_patients


@pytest.fixture(scope="session")
def fold_root(tmp_path_factory):
  """The data of `fold_run`."""
  return write_patients(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def fold_run(fold_root, tmp_path_factory):
  """A finished run of two members with probabilities; its stores are in `fold_root / "cache"`."""
  workdir = tmp_path_factory.mktemp("folds") / "run"
  assert train.main(arguments(fold_root, workdir, "--folds=2", "--probabilities")) == 0
  return workdir
