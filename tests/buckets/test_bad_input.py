"""What is wrong with a bucket is told in one line, before the work and within it."""

import sys

from etils import epath
import pytest

from condseg_jax.cli import evaluate
from condseg_jax.cli import predict
from condseg_jax.cli import prepare
from condseg_jax.cli import train
from condseg_jax.system import buckets
from support.tiny import overrides
from support.tiny import write_datasets
from support.tiny import write_msd


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  return write_msd(tmp_path_factory.mktemp("raw") / "ball", range(2), ["ball"])


def said(capsys, main, *arguments) -> tuple[int, str]:
  """Exit code and the only line on stderr."""
  capsys.readouterr()
  code = main(["command", *map(str, arguments)])
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1, lines
  return code, lines[0]


def prepare_to(out, raw):
  return (prepare.main, "--format=msd", f"--source={raw}", f"--out={out}")


def test_a_bucket_that_does_not_exist(s3, capsys, raw):
  code, line = said(capsys, *prepare_to("s3://nowhere/store", raw))
  assert code == 1
  assert line == ("command: s3://nowhere/store: the bucket does not exist (create it, or correct "
                  "the address)")


def test_a_bucket_without_permission(s3, bucket, capsys, raw):
  s3.authorise(required=True)
  try:
    code, line = said(capsys, *prepare_to(f"{bucket}/store", raw))
  finally:
    s3.authorise(required=False)
  assert code == 1 and "access is refused (check the credentials" in line
  assert not epath.Path(f"{bucket}/store").exists()


def test_missing_credentials(s3, bucket, capsys, raw, monkeypatch):
  monkeypatch.delenv("AWS_ACCESS_KEY_ID")
  code, line = said(capsys, *prepare_to(f"{bucket}/store", raw))
  assert code == 1 and "no credentials are found (set AWS_ACCESS_KEY_ID" in line


@pytest.mark.parametrize("address, package", [("s3://x/y", "obstore"), ("gs://x/y", "gcsfs")])
def test_a_missing_extra(address, package, capsys, raw, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  code, line = said(capsys, *prepare_to(address, raw))
  assert code == 1
  assert line.endswith(f'needs {package}, which is not installed (pip install '
                       '"condseg-jax[buckets]")')


def test_an_unknown_scheme(capsys, raw):
  code, line = said(capsys, *prepare_to("ftp://bucket/store", raw))
  assert code == 2 and "has the unknown scheme ftp://" in line


def test_no_server(s3, bucket, capsys, raw):
  s3.relay.cut()
  try:
    code, line = said(capsys, *prepare_to(f"{bucket}/store", raw))
  finally:
    s3.relay.start()
  assert code == 1 and "the server does not answer (run the same command again" in line


def test_a_flag_that_must_be_local(bucket, capsys):
  code, line = said(capsys, prepare.main, "--format=msd", f"--source={bucket}/raw", "--out=x")
  assert code == 2 and "--source: must be a local path, not s3://" in line
  code, line = said(capsys, prepare.main, "--format=phantom", f"--out={bucket}/raw")
  assert code == 2 and "--out: must be a local folder, not s3://" in line


def test_nothing_there(bucket, capsys, tmp_path):
  buckets.connect(bucket)
  code, line = said(capsys, predict.main, f"--workdir={bucket}/run", f"--input={bucket}/scan.nii",
                    f"--output={tmp_path}")
  assert code == 1 and f"{bucket}/scan.nii: does not exist" in line
  code, line = said(capsys, evaluate.main, f"--workdir={bucket}/run", f"--data={bucket}/d",
                    f"--out={bucket}/o")
  assert code == 1 and f"{bucket}/run/checkpoints" in line
  root = write_datasets(tmp_path / "data")
  flags = overrides(root, **{"data.root": f"{bucket}/none"})
  code, line = said(capsys, train.main, "--config=base", f"--workdir={bucket}/run", *flags)
  assert code == 1 and f"{bucket}/none: does not exist" in line
