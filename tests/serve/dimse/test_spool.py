"""The spool: each series is in one state, once, whatever breaks and whenever the process dies."""

import json
import os

import pytest

from condseg_jax.serve.dimse import spool as module
from condseg_jax.serve.dimse.spool import Spool


class Clock:
  """The time of the spool."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  made = Clock()
  monkeypatch.setattr(module.time, "monotonic", made)
  return made


@pytest.fixture
def spool(tmp_path, clock):
  return Spool(tmp_path / "spool", 30.0)


def add(spool, association=0, instances="abc", series="1.2"):
  for instance in instances:
    spool.add(association, "SENDER", series, instance, instance.encode())


def ready(spool, clock, seconds):
  """What is ready after some time: the contents of the series."""
  clock.now += seconds
  spool.collect()
  return [b"".join(sorted(path.read_bytes() for path in spool.series(name).iterdir()))
          for name in spool.ready()]


def test_complete_when_the_association_ends(spool, clock):
  add(spool)
  assert ready(spool, clock, 10) == []  # open, and not quiet for long enough
  spool.end(0, orderly=True)
  assert ready(spool, clock, 1) == []  # the next association may go on
  assert ready(spool, clock, 2) == [b"abc"]
  assert ready(spool, clock, 100) == [b"abc"]


def test_complete_when_it_is_quiet(spool, clock):
  add(spool, instances="ab")
  assert ready(spool, clock, 29) == []
  add(spool, instances="c")
  assert ready(spool, clock, 29) == []
  assert ready(spool, clock, 2) == [b"abc"]
  spool.end(0, orderly=False)  # of no importance any more
  assert ready(spool, clock, 100) == [b"abc"] and spool.waiting() == 1


def test_series_and_senders_are_kept_apart(spool, clock):
  add(spool)
  add(spool, series="1.3", instances="xy")
  spool.add(1, "OTHER", "1.2", "z", b"z")
  spool.end(0, orderly=True)
  spool.end(1, orderly=True)
  assert sorted(ready(spool, clock, 3)) == [b"abc", b"xy", b"z"]


@pytest.mark.parametrize("again", ["abcd", "d"])
def test_a_broken_series_waits_for_the_rest(spool, clock, again):
  """Whether the sender repeats everything or goes on."""
  add(spool)
  spool.end(0, orderly=False)
  assert ready(spool, clock, 1000) == [] and spool.waiting() == 1
  add(spool, 1, again)
  spool.end(1, orderly=True)
  assert ready(spool, clock, 3) == [b"abcd"]


def test_one_of_two_parallel_associations_breaks(spool, clock):
  add(spool, 0, "ab")
  add(spool, 1, "x")
  spool.end(0, orderly=False)
  add(spool, 1, "y")
  spool.end(1, orderly=True)
  assert ready(spool, clock, 1000) == []  # c is missing
  add(spool, 2, "c")
  spool.end(2, orderly=True)
  assert ready(spool, clock, 3) == [b"abcxy"]


def test_a_slice_that_is_sent_twice_is_kept_once(spool, clock):
  add(spool, instances="aabb")
  spool.end(0, orderly=True)
  assert ready(spool, clock, 3) == [b"ab"]


def test_killed_while_a_series_arrives(spool, clock):
  add(spool, instances="ab")
  (spool.folder / "receiving" / ".half").write_bytes(b"half")
  after = Spool(spool.folder, 30.0)
  assert ready(after, clock, 1000) == [] and after.waiting() == 1
  add(after, 0, "c")
  after.end(0, orderly=True)
  assert ready(after, clock, 3) == [b"abc"]
  assert not list((spool.folder / "receiving").iterdir())


def test_killed_after_the_end_of_the_association(spool, clock):
  add(spool)
  spool.end(0, orderly=True)
  assert ready(Spool(spool.folder, 30.0), clock, 0) == [b"abc"]


def test_killed_at_any_moment_of_an_answer(spool, clock, tmp_path, monkeypatch):
  """Every call that changes the disk is the last one, in turn; then the node starts again."""
  (tmp_path / "seg.dcm").write_bytes(b"seg")
  calls = {"rename": module.Path.rename, "mkdir": module.Path.mkdir,
           "copyfile": module.shutil.copyfile, "rmtree": module.shutil.rmtree}

  class Killed(BaseException):
    pass

  for last in range(6):
    add(spool, last)
    spool.end(last, orderly=True)
    (content,) = ready(spool, clock, 3)
    (name,) = spool.ready()
    left = [last]

    def counted(function, left=left):
      def call(*args, **options):
        if not left[0]:
          raise Killed
        left[0] -= 1
        return function(*args, **options)
      return call

    with monkeypatch.context() as patch:
      for owner, attribute in ((module.Path, "rename"), (module.Path, "mkdir"),
                               (module.shutil, "copyfile"), (module.shutil, "rmtree")):
        patch.setattr(owner, attribute, counted(calls[attribute]))
      try:
        spool.answer(name, [tmp_path / "seg.dcm"])
        finished = True
      except Killed:
        finished = False
    spool = Spool(spool.folder, 30.0)
    spool.collect()
    assert len(spool.ready()) + len(spool.results()) == 1, last  # one of the two, never both
    for again in spool.ready():
      spool.answer(again, [tmp_path / "seg.dcm"])
    (path,) = spool.results()
    assert path.read_bytes() == b"seg"
    spool.sent(path)
    assert spool.waiting() == 0 and content == b"abc"
  assert finished


def test_a_failure_is_recorded(spool, clock):
  add(spool)
  spool.end(0, orderly=True)
  ready(spool, clock, 3)
  (name,) = spool.ready()
  spool.fail(name, {"status": 422, "reason": "why"})
  assert spool.waiting() == 0
  (path,) = (spool.folder / "failed").iterdir()
  assert json.loads(path.read_text())["reason"] == "why"
  assert Spool(spool.folder, 30.0).waiting() == 0


def test_an_incomplete_series_is_removed_after_days(spool, clock):
  add(spool)
  spool.end(0, orderly=False)
  (folder,) = (spool.folder / "receiving").iterdir()
  old = os.stat(folder).st_mtime - (module.KEPT_DAYS + 1) * 86400
  os.utime(folder, (old, old))
  assert ready(spool, clock, 1) == [] and spool.waiting() == 0


def test_others_cannot_read_it(spool, clock):
  add(spool)
  for path in (spool.folder / "receiving", *(spool.folder / "receiving").iterdir()):
    assert path.stat().st_mode & 0o077 == 0


def test_names_from_the_network_are_no_paths(spool, clock):
  spool.add(0, "../../x", "../../y", "../../z", b"z")
  spool.end(0, orderly=True)
  assert ready(spool, clock, 3) == [b"z"]
  assert {path.name for path in spool.folder.parent.iterdir()} == {"spool"}
