"""Zip archives: members are unpacked under safe names; invalid archives are rejected."""

import io
import tracemalloc
import zipfile

import pytest

from condseg_jax.serve.archive import unpack
from condseg_jax.serve.request import HttpError
from support.service import LIMITS
from support.service import zipped


def unpacked(folder, content):
  (folder / "body").write_bytes(content)
  names = unpack(folder / "body", folder / "series", LIMITS)
  return names, [path.read_bytes() for path in sorted((folder / "series").iterdir())]


def test_members_are_unpacked_under_numbers(tmp_path):
  given = [("a/IM1.dcm", b"one"), ("a/", b""), ("b\\IM1.dcm", b"two"), ("a/.hidden", b"no"),
           ("__MACOSX/a/IM1.dcm", b"no"), ("a/\u00e4 b.dcm", b"three")]
  names, contents = unpacked(tmp_path, zipped(given))
  assert names == ["a/IM1.dcm", "b\\IM1.dcm", "a/\u00e4 b.dcm"]
  assert contents == [b"one", b"two", b"three"]
  assert {p.name for p in tmp_path.rglob("*")} == {
      "body", "series", "member_00000.dcm", "member_00001.dcm", "member_00002.dcm"}


def test_what_is_no_slice_keeps_another_kind_of_name(tmp_path):
  """The reader of a folder tells a lost slice from a note by its name."""
  given = [("IM1", b"1"), ("README", b"2"), ("a/notes.TXT", b"3"), ("1.2.3", b"4")]
  unpacked(tmp_path, zipped(given))
  assert sorted(p.name for p in (tmp_path / "series").iterdir()) == [
      "member_00000", "member_00001.other", "member_00002.txt", "member_00003"]


def test_a_member_larger_than_the_directory_says(tmp_path):
  content = zipped([("a.dcm", bytes(100_000))])
  lying = content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
  assert lying != content
  with pytest.raises(HttpError) as caught:
    unpacked(tmp_path, lying)
  assert caught.value.status == 422
  assert sum(p.stat().st_size for p in (tmp_path / "series").iterdir()) <= 10


def test_an_encrypted_zip(tmp_path):
  content = bytearray(zipped([("a.dcm", b"x")]))
  content[content.index(b"PK\x01\x02") + 8] |= 1
  with pytest.raises(HttpError, match="encrypted"):
    unpacked(tmp_path, bytes(content))


def test_a_method_that_is_not_unpacked(tmp_path):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("a.dcm", b"x")
  with pytest.raises(HttpError, match="method 14"):
    unpacked(tmp_path, stream.getvalue())


def test_a_directory_of_a_million_costs_no_memory(tmp_path):
  entry = b"PK\x01\x02" + bytes(42)
  count = 1_000_000
  end = b"PK\x05\x06" + bytes(8) + (len(entry) * count).to_bytes(4, "little") + bytes(6)
  (tmp_path / "body").write_bytes(entry * count + end)
  tracemalloc.start()
  try:
    with pytest.raises(HttpError, match="more than 50 files"):
      unpack(tmp_path / "body", tmp_path / "series", LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 10e6  # zipfile would take 500
  finally:
    tracemalloc.stop()
