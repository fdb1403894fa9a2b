"""Downloading against a real server on the loopback, and archives that mean harm."""

from concurrent.futures import ThreadPoolExecutor
import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile

import pytest

from condseg_jax.cli import fetch as command
from condseg_jax.datasets.discover import FORMATS
from condseg_jax.datasets.download import catalogue
from condseg_jax.datasets.download import transfer as download_lib
from condseg_jax.datasets.download.catalogue import Archive
from condseg_jax.datasets.download.catalogue import Licensed
from condseg_jax.datasets.download.fetch import fetch
from condseg_jax.datasets.download.unpack import unpack
from condseg_jax.errors import InputError

PAYLOAD = {"Task/dataset.json": b"{}", "Task/imagesTr/a.nii": os.urandom(300_000)}


def tar(path, members=PAYLOAD, mode="w"):
  with tarfile.open(path, mode) as stream:
    for name, content in members.items():
      info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
      data = b"" if isinstance(content, tarfile.TarInfo) else content
      info.size = info.size or len(data)
      stream.addfile(info, io.BytesIO(data))
  return path


class Server(http.server.ThreadingHTTPServer):
  """Serves `content` whatever the path; `breaks` transfers stop half way."""

  content, ranges, breaks, tag = b"", True, 0, '"v1"'

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.requests, self.sent = [], 0

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}/Task.tar"


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    server = self.server
    server.requests.append(dict(self.headers))
    body, start = server.content, 0
    wanted = self.headers.get("Range")
    if wanted and server.ranges and self.headers.get("If-Range") == server.tag:
      start = int(wanted.removeprefix("bytes=").rstrip("-"))
      if start >= len(body):
        self.send_error(416)
        return
      self.send_response(206)
      self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
      self.send_response(200)
    body = body[start:]
    self.send_header("Content-Length", str(len(body)))
    if server.tag:
      self.send_header("ETag", server.tag)
    self.end_headers()
    if server.breaks > 0:
      server.breaks -= 1
      body = body[:len(body) // 2]
    server.sent += len(body)
    self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setattr(download_lib, "PAUSE", 0.0)
  with Server() as running, ThreadPoolExecutor(1) as pool:
    running.content = tar(tmp_path / "made.tar").read_bytes()
    pool.submit(running.serve_forever, 0.02)
    yield running
    running.shutdown()


def entry(server, digest="", **changes):
  digest = digest or "sha256:" + hashlib.sha256(server.content).hexdigest()
  return Archive(server.url, digest, "free", "msd", "Task", **changes)


def got(server, out, **changes):
  return fetch("set", entry(server, **changes), out, progress=False)


def tree(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- transfers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_dataset_arrives_checked_and_unpacked(kind, server, tmp_path):
  digest = f"{kind}:{hashlib.new(kind, server.content).hexdigest()}"
  folder = got(server, tmp_path / "out", digest=digest)
  files = tree(folder)
  source = json.loads(files.pop("SOURCE.json"))
  assert files == {name.removeprefix("Task/"): data for name, data in PAYLOAD.items()}
  assert source["sha256"] == hashlib.sha256(server.content).hexdigest()
  assert source["url"] == server.url and source["published"] == digest
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["set"]


def test_what_has_come_whole_is_not_sent_again(server, tmp_path):
  """Broken off between the transfer and what follows it."""
  part = tmp_path / "part"
  for _ in range(2):
    download_lib.download(server.url, part, progress=False)
    assert part.read_bytes() == server.content
  assert len(server.requests) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
  server.breaks = 3
  got(server, tmp_path / "out")
  assert len(server.requests) == 4 and server.sent == len(server.content)
  starts = [int(r["Range"].removeprefix("bytes=").rstrip("-")) for r in server.requests[1:]]
  assert starts == sorted(set(starts)) and starts[0] == len(server.content) // 2


def test_another_command_goes_on_too(server, tmp_path, monkeypatch):
  monkeypatch.setattr(download_lib, "RETRIES", 0)
  server.breaks = 1
  with pytest.raises(InputError, match="same command again"):
    got(server, tmp_path / "out")
  part, = (tmp_path / "out").glob("*.tar")
  assert part.read_bytes() == server.content[:len(server.content) // 2]
  assert (got(server, tmp_path / "out") / "dataset.json").exists()
  assert server.sent == len(server.content)


@pytest.mark.parametrize("change", ["no ranges", "other file", "no tag"])
def test_parts_of_two_versions_are_never_joined(change, server, tmp_path, monkeypatch):
  monkeypatch.setattr(download_lib, "RETRIES", 0)
  if change == "no tag":
    server.tag = ""
  server.breaks = 1
  with pytest.raises(InputError):
    got(server, tmp_path / "out")
  if change == "no ranges":
    server.ranges = False
  if change == "other file":
    server.tag = '"v2"'
    server.content = tar(tmp_path / "b.tar", {"Task/new": os.urandom(500_000)}).read_bytes()
  folder = got(server, tmp_path / "out")
  assert ("new" in tree(folder)) == (change == "other file")


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "set.part-Task.tar").write_bytes(server.content + b"more")
  (out / "set.part-Task.tar.json").write_text(json.dumps({"version": server.tag}))
  assert (got(server, out) / "dataset.json").exists()


@pytest.mark.parametrize("where", ["published", "demanded"])
def test_a_wrong_digest_leaves_nothing(where, server, tmp_path):
  out = tmp_path / "out"
  with pytest.raises(InputError, match="was removed"):
    if where == "published":
      got(server, out, digest="md5:" + "0" * 32)
    else:
      fetch("set", entry(server), out, sha256="0" * 64, progress=False)
  assert list(out.iterdir()) == []


def test_what_cannot_be_fetched(server, tmp_path):
  (tmp_path / "out" / "set").mkdir(parents=True)
  with pytest.raises(InputError, match="already exists"):
    got(server, tmp_path / "out")
  assert server.requests == []
  with pytest.raises(InputError, match="not an http or https address"):
    download_lib.download((tmp_path / "made.tar").as_uri(), tmp_path / "part")
  with pytest.raises(InputError, match="SHA-256"):
    fetch("other", entry(server), tmp_path, sha256="abc")


def test_a_missing_file_is_not_asked_for_again(server, tmp_path, monkeypatch):
  monkeypatch.setattr(Handler, "do_GET", lambda self: (
      self.server.requests.append(1), self.send_error(404)))
  with pytest.raises(InputError, match="404"):
    got(server, tmp_path / "out")
  assert len(server.requests) == 1


def test_nobody_answers(tmp_path):
  with Server() as closed:
    url = closed.url
  waits = []
  with pytest.raises(InputError, match="transfer fails"):
    download_lib.download(url, tmp_path / "part", progress=False, sleep=waits.append)
  assert waits == [2.0, 4.0, 8.0, 16.0]


# --- archives -----------------------------------------------------------------------------------
def special(kind, target="../../outside"):
  info = tarfile.TarInfo("Task/x")
  info.type, info.linkname = kind, target
  return info


HOSTILE = {
    "absolute": {"/tmp/outside": b"x"}, "parent": {"Task/../../outside": b"x"},
    "symlink": {"Task/x": special(tarfile.SYMTYPE)},
    "symlink inside": {"Task/x": special(tarfile.SYMTYPE, "dataset.json")},
    "hardlink": {"Task/x": special(tarfile.LNKTYPE, "/etc/passwd")},
    "device": {"Task/x": special(tarfile.CHRTYPE)}, "pipe": {"Task/x": special(tarfile.FIFOTYPE)},
    "twice": {"Task/a": b"1", "Task//a": b"2"}, "windows": {"Task\\..\\..\\outside": b"x"},
    "drive": {"C:outside": b"x"},
    "file and folder": {"Task/d": b"x", "Task/d/a": b"x"},
    "folder and file": {"Task/d/a": b"x", "Task/d": b"x"},
    "no name": {".": b"x"}, "long name": {"Task/" + 300 * "a": b"x"},
    "long path": {500 * "Task/" + "a": b"x"},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hostile_archives_write_nothing(kind, mode, tmp_path):
  inner = tmp_path / "a" / "b"
  inner.mkdir(parents=True)
  archive = tar(tmp_path / ("x.tar" if mode == "w" else "x.tar.gz"),
                {"Task/ok": b"fine", **HOSTILE[kind]}, mode)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(InputError, match="member"):
    unpack(archive, inner / "target", limit=10**9)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "..\\outside"])
def test_hostile_zips_write_nothing(name, tmp_path):
  with zipfile.ZipFile(tmp_path / "x.zip", "w") as stream:
    stream.writestr("ok", b"fine")
    stream.writestr(name, b"x")
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(InputError, match="path outside of the archive"):
    unpack(tmp_path / "x.zip", tmp_path / "target", limit=10**9)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("names", [("d", "d/a"), ("d/a", "d"), (300 * "a",), (".",)])
def test_zips_whose_names_cannot_be_written_leave_nothing(names, tmp_path):
  with zipfile.ZipFile(tmp_path / "x.zip", "w") as stream:
    for name in ("ok", *names):
      stream.writestr(name, b"x")
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(InputError, match="both a file and a folder|too long a name"):
    unpack(tmp_path / "x.zip", tmp_path / "target", limit=10**9)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_with_a_link_is_refused(tmp_path):
  info = zipfile.ZipInfo("link")
  info.external_attr = 0o120777 << 16
  with zipfile.ZipFile(tmp_path / "x.zip", "w") as stream:
    stream.writestr(info, "/etc/passwd")
  with pytest.raises(InputError, match="link or device"):
    unpack(tmp_path / "x.zip", tmp_path / "target", limit=10**9)


def test_a_bomb_is_not_set_off(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as stream:
    stream.writestr("zeros", b"\0" * 5_000_000)
  with pytest.raises(InputError, match="would unpack"):
    unpack(tmp_path / "x.zip", tmp_path / "target", limit=4_000_000)
  assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]
  unpack(tmp_path / "x.zip", tmp_path / "target", limit=6_000_000)
  assert (tmp_path / "target" / "zeros").stat().st_size == 5_000_000


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip", "x.rar"])
def test_damaged_archives(name, tmp_path):
  whole = tar(tmp_path / "whole.tar.gz", mode="w:gz").read_bytes()
  (tmp_path / name).write_bytes(whole[:2000] if name == "x.tar.gz" else os.urandom(2000))
  with pytest.raises(InputError):
    unpack(tmp_path / name, tmp_path / "target", limit=10**9)
  assert not (tmp_path / "target").exists() and not list(tmp_path.glob(".target*"))


@pytest.mark.parametrize("kind", ["header", "end", "checksum", "after"])
def test_the_end_of_a_tar_is_checked(kind, tmp_path):
  """tarfile stops at a damaged header, and before the checksum of gzip."""
  data = bytearray(tar(tmp_path / "whole.tar", {"a": b"1", "b": b"2"}).read_bytes())
  if kind == "header":
    data[1024] ^= 1
  del data[2560 if kind == "end" else len(data):]
  packed = bytearray(gzip.compress(data))
  if kind == "checksum":
    packed[-5] ^= 1
  (tmp_path / "x.tar.gz").write_bytes(packed + b"more" * (kind == "after"))
  with pytest.raises(InputError, match="is damaged"):
    unpack(tmp_path / "x.tar.gz", tmp_path / "target", limit=10**9)
  assert {p.name for p in tmp_path.iterdir()} == {"whole.tar", "x.tar.gz"}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_zeros_without_end_are_not_read(mode, tmp_path):
  with tarfile.open(tmp_path / "x.tar.gz", mode) as stream:
    stream.addfile(tarfile.TarInfo("a"))
    stream.fileobj.write(bytes(1 << 22))
  with pytest.raises(InputError, match="bytes of zeros"):
    unpack(tmp_path / "x.tar.gz", tmp_path / "target", limit=1 << 21)


@pytest.mark.parametrize(("members", "expected"), [
    ({"Top/a": b"1", "Top/b/c": b"2"}, {"a": b"1", "b/c": b"2"}),
    ({"a": b"1", "b/c": b"2"}, {"a": b"1", "b/c": b"2"})])
def test_one_top_folder_is_the_dataset(members, expected, tmp_path):
  unpack(tar(tmp_path / "x.tar", members), tmp_path / "target", limit=10**9)
  assert tree(tmp_path / "target") == expected


def test_litter_of_macos_is_left_out(tmp_path):
  archive = tar(tmp_path / "x.tar", {"Task/a.nii": b"1", "Task/._a.nii": b"2", "__MACOSX/b": b"3"})
  unpack(archive, tmp_path / "target", folder="Task", limit=10**9)
  assert tree(tmp_path / "target") == {"a.nii": b"1"}


def test_a_target_is_never_overwritten_and_may_be_raced_for(tmp_path):
  archive = tar(tmp_path / "x.tar")
  barrier = threading.Barrier(2)

  def one(_):
    barrier.wait()
    try:
      unpack(archive, tmp_path / "target", folder="Task", limit=10**9)
      return True
    except (InputError, OSError):
      return False
  with ThreadPoolExecutor(2) as pool:
    assert any(pool.map(one, range(2)))
  assert set(tree(tmp_path / "target")) == {"dataset.json", "imagesTr/a.nii"}
  with pytest.raises(InputError, match="already exists"):
    unpack(archive, tmp_path / "target", limit=10**9)


# --- the catalogue and the command --------------------------------------------------------------
@pytest.mark.parametrize("name", catalogue.DATASETS)
def test_the_catalogue_is_sound(name):
  dataset = catalogue.DATASETS[name]
  assert dataset.format in FORMATS
  if isinstance(dataset, Licensed):
    assert dataset.page.startswith("https://") and dataset.expected
    return
  kind, _, value = dataset.digest.partition(":")
  assert len(bytes.fromhex(value)) == {"md5": 16, "sha256": 32}[kind]
  assert dataset.url.startswith("https://") and dataset.url.endswith((".tar", ".zip"))


def test_the_command(server, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(catalogue.DATASETS, "mine", entry(server))
  assert command.main(["condseg-fetch", "mine", f"--out={tmp_path / 'out'}"]) == 0
  said = capsys.readouterr().out
  assert f"condseg-prepare --format=msd --out=PREPARED --source={tmp_path / 'out' / 'mine'}" in said
  assert command.main(["condseg-fetch", "list"]) == 0
  assert "mine" in capsys.readouterr().out
  assert command.main(["condseg-fetch", "sliver07"]) == 1
  assert "sliver07.grand-challenge.org" in capsys.readouterr().out
  for arguments in ([], ["nothing"], ["mine"], ["mine", "more", "--out=x"]):
    assert command.main(["condseg-fetch", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
