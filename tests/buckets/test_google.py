"""Stores at `gs://`, against an emulator of Google Cloud Storage."""

from etils import epath
import pytest

from condseg_jax.cli import prepare
from condseg_jax.data.store import Store
from condseg_jax.system import buckets
from support import object_storage
from support.tiny import write_datasets


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  with object_storage.google(tmp_path) as url:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield "gs://bucket"


def test_a_store_in_a_bucket_of_google_is_that_of_a_disk(bucket, tmp_path, capsys):
  """Read once: the emulator tells no generations, by which TensorStore knows what has changed."""
  root = write_datasets(tmp_path / "data")
  for place in (bucket, tmp_path):
    assert prepare.main(["condseg-prepare", "--format=msd", "--spacing=2,1,1",
                         f"--source={root / 'train' / 'ball'}", f"--out={place}/ball"]) == 0
  there, here = epath.Path(bucket) / "ball", tmp_path / "ball"
  files = [p.relative_to(here) for p in here.rglob("*") if p.is_file() and p.name != ".lock"]
  assert len(files) > 20
  assert all((there / path).read_bytes() == (here / path).read_bytes() for path in files)
  store = Store.open(there)
  assert all(store.digest(case) == (case.image_sha256, case.sha256) for case in store.cases)
  capsys.readouterr()
  assert prepare.main(["condseg-prepare", "--format=msd", f"--source={root / 'train' / 'box'}",
                       "--out=gs://nowhere/d"]) == 1
  assert "gs://nowhere/d: the bucket does not exist" in capsys.readouterr().err


def test_a_missing_object_is_not_an_error_of_the_bucket(bucket):
  buckets.reach(f"{bucket}/none")
  assert not epath.Path(f"{bucket}/none").exists()
