"""Files in a bucket, as epath sees them."""

import os

from etils import epath
import pytest

from condseg_jax.errors import InputError
from condseg_jax.system import buckets
from condseg_jax.system.atomic import replacing
from condseg_jax.system.atomic import write_text
from condseg_jax.system.lock import held


@pytest.fixture
def folder(bucket):
  buckets.connect(bucket)
  return epath.Path(bucket) / "a" / "b"


def test_files_are_written_read_listed_and_removed(folder):
  assert not folder.exists()
  content = os.urandom(7_000_000)  # more than a block
  (folder / "large").write_bytes(content)
  (folder / "c" / "x.txt").write_text("häuser")
  (folder / "cx").write_text("")
  assert (folder / "large").read_bytes() == content
  with (folder / "large").open("rb") as stream:
    stream.seek(6_999_990)
    assert stream.read() == content[-10:]
  assert (folder / "c" / "x.txt").read_text() == "häuser" and (folder / "cx").read_bytes() == b""
  assert sorted(p.name for p in folder.iterdir()) == ["c", "cx", "large"]
  assert (folder / "c").is_dir() and not (folder / "cx").is_dir() and folder.is_dir()
  assert [p.name for p in folder.glob("*.txt")] == [] and [
      p.name for p in (folder / "c").glob("*.txt")] == ["x.txt"]
  assert (folder / "large").stat().length == 7_000_000 and (folder / "cx").stat().mtime > 1.7e9
  (folder / "cx").unlink()
  with pytest.raises(FileNotFoundError):
    (folder / "cx").unlink()
  with pytest.raises(FileNotFoundError):
    (folder / "cx").read_bytes()
  folder.rmtree()
  assert not folder.exists()


def test_a_folder_is_renamed_with_all_in_it_and_nothing_beside_it(folder):
  for name in ("x", "c/y", "c/d/z"):
    (folder / name).write_text(name)
  (folder.parent / "bc").write_text("beside")
  folder.rename(folder.parent / "new")
  assert not folder.exists() and (folder.parent / "bc").read_text() == "beside"
  assert [(folder.parent / "new" / n).read_text() for n in ("x", "c/y", "c/d/z")] == [
      "x", "c/y", "c/d/z"]


def test_a_file_appears_whole_or_not_at_all(folder):
  write_text(folder / "x", "first")
  with (pytest.raises(KeyError), replacing(folder / "x") as path, path.open("wb") as stream):
    stream.write(b"half")
    raise KeyError
  assert (folder / "x").read_text() == "first"
  assert [p.name for p in folder.iterdir()] == ["x"]


def test_a_second_process_is_kept_out_by_the_lease(folder):
  with held(folder), pytest.raises(InputError, match="is in use by"), held(folder):
    pass
  with held(folder):
    pass


@pytest.mark.slow
def test_a_listing_of_a_large_folder_has_all_pages(folder):
  for number in range(1005):  # a page has 1000
    (folder / "many" / f"{number:04d}").write_bytes(b"")
  assert len(list((folder / "many").iterdir())) == 1005
  (folder / "many").rmtree()
  assert not (folder / "many").exists()


def test_only_s3_and_gs_are_connected():
  for path, reason in (("az://bucket/x", "unknown scheme az://"), ("s3://", "names no bucket"),
                       ("s3:///x", "names no bucket")):
    with pytest.raises(InputError, match=reason) as caught:
      buckets.connect(path)
    assert caught.value.usage
  buckets.connect("/local", "relative/path", "C:/x")
