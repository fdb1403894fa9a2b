"""Stores and checkpoints at `gs://`, against an emulator of Google Cloud Storage."""

from etils import epath
import jax
import numpy as np
import pytest

from condseg_jax.cli import prepare
from condseg_jax.cli import train
from condseg_jax.data.store import Store
from condseg_jax.system import buckets
from condseg_jax.train.checkpoint import Checkpoints
from support import object_storage
from support.tiny import overrides
from support.tiny import write_datasets


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  with object_storage.google(tmp_path) as url:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield "gs://bucket"


@pytest.mark.slow
def test_a_store_in_a_bucket_of_google(bucket, tmp_path, capsys):
  """The workdir is local: the emulator tells no generations, without which orbax cannot write."""
  root = write_datasets(tmp_path / "data")
  variables = []
  for place in (bucket, tmp_path):
    for name in ("ball", "box"):
      assert prepare.main(["condseg-prepare", "--format=msd", "--spacing=2,1,1",
                           f"--source={root / 'train' / name}", f"--out={place}/d/{name}"]) == 0
    workdir = tmp_path / ("from_bucket" if place == bucket else "from_disk")
    assert train.main(["condseg-train", "--config=base", f"--workdir={workdir}",
                       *overrides(root, **{"data.root": f"{place}/d", "train.steps": 3})]) == 0
    checkpoints = Checkpoints(workdir, read_only=True)
    variables.append(jax.tree.leaves(checkpoints.restore_variables(3)))
    checkpoints.close()
  assert all(np.array_equal(a, b) for a, b in zip(*variables, strict=True))
  store = Store.open(f"{bucket}/d/ball")
  assert all(store.digest(case) == (case.image_sha256, case.sha256) for case in store.cases)
  capsys.readouterr()
  assert prepare.main(["condseg-prepare", "--format=msd", f"--source={root / 'train' / 'box'}",
                       "--out=gs://nowhere/d"]) == 1
  assert "gs://nowhere/d: the bucket does not exist" in capsys.readouterr().err


def test_a_missing_object_is_not_an_error_of_the_bucket(bucket):
  buckets.reach(f"{bucket}/none")
  assert not epath.Path(f"{bucket}/none").exists()
