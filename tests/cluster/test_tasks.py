"""Tasks on real workers: errors, messages, deaths, and machines that differ."""

import os
import signal
import threading
import time

import pytest

from condseg_jax.cluster import tasks
from condseg_jax.cluster.connect import connected
from condseg_jax.cluster.tasks import each
from condseg_jax.cluster.tasks import in_order
from condseg_jax.errors import InputError
from support import deaths


@pytest.fixture(scope="module")
def client(address):
  with connected(address) as found:
    yield found


def test_without_a_cluster_in_this_process_one_by_one():
  outcomes = list(each(None, deaths.double, [(2,), (3,), (4,)], list("abc")))
  assert [(o.number, o.value) for o in outcomes] == [(0, 4), (1, None), (2, 8)]
  assert isinstance(outcomes[1].error, InputError)
  assert each(None, os.getpid, [()], ["pid"]).__next__().value == os.getpid()


def test_in_order():
  taken = []

  def pairs():
    for number in (2, 0, 1, 4, 3):
      taken.append(number)
      yield number, str(number)

  first = next(found := in_order(pairs()))
  assert first == "0" and taken == [2, 0], "as soon as it is there"
  assert list(found) == ["1", "2", "3", "4"]


def test_a_case_that_ends_three_workers_is_set_aside_by_name(client, capsys):
  """The others are done once; an error keeps its parts, and what a case says is said here."""
  names = [f"case {number}" for number in range(10)]
  outcomes = sorted(each(client, deaths.double, [(n,) for n in range(10)], names))
  assert [o.number for o in outcomes] == list(range(10))
  assert [o.value for o in outcomes] == [n if n is None else 2 * n for n in (
      0, 1, 2, None, 4, 5, 6, None, 8, 9)]
  bad, dead = outcomes[3].error, outcomes[7].error
  assert str(bad) == "three: is bad (take another)" and not bad.usage
  assert str(dead).startswith("case 7: ended the process of its worker 3 times")
  assert "five is here" in capsys.readouterr().err


def test_a_case_of_a_killed_worker_is_done_by_another(client, tmp_path):
  """The process is killed while it works, which it has said itself."""
  def kill():
    while not (found := list(tmp_path.glob("*.*"))):
      time.sleep(0.02)
    os.kill(int(found[0].suffix[1:]), signal.SIGKILL)
    (tmp_path / "go").touch()

  thread = threading.Thread(target=kill, daemon=True)
  thread.start()
  outcomes = list(each(client, deaths.leave_pid, [(tmp_path, n) for n in range(4)], list("abcd")))
  thread.join(10)
  assert sorted((o.number, o.value, o.error) for o in outcomes) == [(n, n, None) for n in range(4)]
  assert len(list(tmp_path.glob("*.*"))) == 5, "one case was begun twice"


def test_a_worker_of_other_versions_or_another_disk_ends_the_command(client, tmp_path,
                                                                     monkeypatch):
  with pytest.raises(InputError, match="missing: does not exist for the worker on .*share"):
    list(each(client, deaths.double, [(1,)], ["a"], shared=[tmp_path / "missing"]))
  monkeypatch.setattr(tasks, "versions", lambda: {"jax": "0.1.0"})
  with pytest.raises(InputError, match=r"worker on .*: has jax [\d.]+, but this .* 0.1.0") as e:
    list(each(client, deaths.double, [(1,)], ["a"]))
  assert e.value.usage


def test_a_bug_is_raised(client):
  with pytest.raises(TypeError, match="positional argument"):
    list(each(client, deaths.double, [()], ["a"]))
