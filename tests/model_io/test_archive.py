"""An archive holds what was written, or is refused in one line."""

import hashlib
import io
import json
import random
import zipfile

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from condseg_jax.errors import InputError
from condseg_jax.model_io import archive

MEMBERS = {"b.json": b'{"a": 1}', "a/x.npy": bytes(range(256)) * 3, "empty": b""}
NAMES = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,8}(/[a-z0-9_][a-z0-9_.-]{0,8}){0,2}", fullmatch=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp("archive") / "m.condseg"
  archive.write_archive(path, MEMBERS)
  return path.read_bytes()


@pytest.fixture
def refused(tmp_path):
  """The reason why a content is refused; it must be one line that names the file."""
  def reason(content: bytes) -> str:
    path = tmp_path / "bad.condseg"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
      archive.read_archive(path)
    line = str(error.value)
    assert "\n" not in line and len(line) < 500 and line.startswith(f"{path}: ")
    return error.value.reason
  return reason


def digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def zipped(members, *, manifest=None, compression=zipfile.ZIP_STORED) -> bytes:
  """A zip archive of any members; the manifest is right for them unless one is given."""
  buffer = io.BytesIO()
  if manifest is None:
    manifest = {"format": archive.FORMAT, "version": archive.VERSION,
                "sha256": {name: digest(content) for name, content in members.items()}}
  with zipfile.ZipFile(buffer, "w", compression) as z:
    if manifest:
      z.writestr(archive.MANIFEST, json.dumps(manifest))
    for name, content in members.items():
      z.writestr(name, content)
  return buffer.getvalue()


@settings(max_examples=50, deadline=None)
@given(members=st.dictionaries(NAMES.filter(lambda name: name != archive.MANIFEST),
                               st.binary(max_size=200), max_size=6), seed=st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, members, seed):
  path = tmp_path_factory.mktemp("a") / "m.condseg"
  digest = archive.write_archive(path, members)
  assert archive.read_archive(path) == members
  shuffled = random.Random(seed).sample(list(members.items()), len(members))
  assert archive.write_archive(path, dict(shuffled)) == digest, "the order must not matter"


def test_other_programs_can_read_it(written):
  with zipfile.ZipFile(io.BytesIO(written)) as z:
    assert z.testzip() is None
    assert {name: z.read(name) for name in MEMBERS} == MEMBERS
    assert {entry.date_time for entry in z.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    manifest = json.loads(z.read("manifest.json"))
  assert manifest["sha256"]["empty"] == (
      "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


def outcome(path, content):
  path.write_bytes(content)
  try:
    return archive.read_archive(path)
  except InputError as error:
    assert "\n" not in str(error)
    return None


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_changes_a_member(written, tmp_path_factory, data):
  """What zip itself ignores may change (a time stamp); a member that is read is never another."""
  changed = bytearray(written)
  for _ in range(data.draw(st.integers(1, 4))):
    at = data.draw(st.integers(0, len(changed)))
    cut = data.draw(st.sampled_from([0, 1, 2, 4, 100, len(changed)]))
    changed[at:at + cut] = data.draw(st.binary(max_size=8))
  found = outcome(tmp_path_factory.getbasetemp() / "changed.condseg", bytes(changed))
  assert found in (None, MEMBERS)


def test_every_byte_of_the_members_counts(written, tmp_path):
  for name in ("b.json", "a/x.npy"):
    first = written.index(MEMBERS[name])
    for at in range(first, first + len(MEMBERS[name]), 7):
      changed = bytearray(written)
      changed[at] ^= 1
      assert outcome(tmp_path / "m.condseg", bytes(changed)) is None


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_other_file_is_refused(tmp_path_factory, content):
  assert outcome(tmp_path_factory.getbasetemp() / "other.condseg", content) is None


def test_cut_short(written, refused):
  for length in (3, 100, len(written) // 2, len(written) - 1):
    assert "damaged" in refused(written[:length])
  assert "not a zip archive" in refused(b"")


def test_not_there(tmp_path):
  with pytest.raises(InputError, match="cannot be read"):
    archive.read_archive(tmp_path / "no.condseg")
  with pytest.raises(InputError, match="cannot be read"):
    archive.read_archive(tmp_path)


def test_an_archive_of_something_else(refused):
  assert "not a model bundle" in refused(zipped({"word/document.xml": b"<w/>"}, manifest={}))
  other = {"format": "another program's", "version": 1, "sha256": {}}
  assert "not a model bundle" in refused(zipped({}, manifest=other))
  assert "version 4" in refused(zipped({}, manifest={"format": archive.FORMAT, "version": 4,
                                                     "sha256": {}}))


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../b", "a//b", "C:\\a", "a\\..\\b", ".",
                                  "a\nb", "a b"])
def test_names_that_leave_the_archive(refused, name):
  assert "damaged" in refused(zipped({name: b"x"}))


def test_a_bomb(refused):
  bomb = zipped({"a": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED)
  assert len(bomb) < 10**6 and "compressed" in refused(bomb)


def test_members_that_share_their_bytes(refused):
  """Many entries of the directory that point to one large content."""
  content = zipped({"a": bytes(10_000), "b": b"", "c": b""})
  directory = content.index(b"PK\x01\x02")
  body, directory = content[:directory], bytearray(content[directory:])
  first = directory.index(b"PK\x01\x02", 4)  # the entry of a, after that of the manifest
  sizes = directory[first + 16:first + 28]
  for at in (i for i in range(first + 4, len(directory)) if directory[i:i + 4] == b"PK\x01\x02"):
    directory[at + 16:at + 28] = sizes
    directory[at + 42:at + 46] = directory[first + 42:first + 46]
  assert "overlap" in refused(body + bytes(directory))


def test_members_and_manifest_must_agree(refused):
  manifest = {"format": archive.FORMAT, "version": 1, "sha256": {"a": digest(b"x")}}
  assert "b is not in the manifest" in refused(zipped({"a": b"x", "b": b"y"}, manifest=manifest))
  assert "a is missing" in refused(zipped({}, manifest=manifest))
  assert "a is not what the manifest says" in refused(zipped({"a": b"y"}, manifest=manifest))
  for digests in ([], None, "a", {"a": None}, {"a": []}, {"a": {}}, 3, [[{}, 1]]):
    assert "damaged" in refused(zipped({"a": b"x"}, manifest={**manifest, "sha256": digests}))


def test_too_large(tmp_path, monkeypatch, written):
  path = tmp_path / "m.condseg"
  with path.open("wb") as stream:
    stream.truncate(archive.LIMIT + 1)  # sparse: takes no room
  with pytest.raises(InputError, match="more than one can have"):
    archive.read_archive(path)
  monkeypatch.setattr(archive, "LIMIT", len(written) - 1)
  with pytest.raises(InputError, match="an archive holds"):
    archive.write_archive(tmp_path / "n.condseg", MEMBERS)
  assert not (tmp_path / "n.condseg").exists()


def test_where_nothing_can_be_written(tmp_path):
  with pytest.raises(InputError, match="cannot be written"):
    archive.write_archive(tmp_path / "no" / "m.condseg", MEMBERS)
