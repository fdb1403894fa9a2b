"""One server for all tests of a worker, a bucket of its own for each."""

import pytest

from support import object_storage


@pytest.fixture(scope="session")
def moto(tmp_path_factory):
  """A running S3 server."""
  with object_storage.moto(tmp_path_factory.mktemp("moto")) as server:
    yield server


@pytest.fixture
def s3(moto, monkeypatch):
  """The server, with the environment that its clients need."""
  for name, value in moto.environment.items():
    monkeypatch.setenv(name, value)
  for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
    monkeypatch.delenv(name, raising=False)
  return moto


@pytest.fixture
def bucket(s3):
  """Address of an empty bucket."""
  return f"s3://{s3.bucket()}"
