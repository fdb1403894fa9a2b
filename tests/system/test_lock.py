"""One process at a time: locks, and leases where there are none."""

import json
import logging
from pathlib import Path
import subprocess
import sys
import time

from etils import epath
import pytest

from condseg_jax.errors import InputError
from condseg_jax.system.lock import held
from condseg_jax.system.lock import leased

HOLD = """
import sys, time
from condseg_jax.system.lock import held
with held(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
  with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)],
                        stdout=subprocess.PIPE) as process:
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match=f"is in use by process {process.pid} on "):
      held(tmp_path).__enter__()
    process.kill()
  with held(tmp_path):
    pass
  with held(tmp_path):  # and again, after an orderly end
    pass


def test_parts_of_a_folder_are_held_apart(tmp_path):
  with held(tmp_path), held(tmp_path, "_0"), held(tmp_path, "_1"):
    with pytest.raises(InputError, match="is in use by process"):
      held(tmp_path, "_0").__enter__()
  with leased(epath.Path(tmp_path), 0.4), leased(epath.Path(tmp_path), 0.4, part="_0"):
    pass


def test_a_lease_is_renewed_and_given_up(tmp_path):
  folder = epath.Path(tmp_path)
  with leased(folder, seconds=0.4):
    before = json.loads((tmp_path / ".lease").read_text())["renewed"]
    time.sleep(0.6)  # longer than the lease, were it not renewed
    assert json.loads((tmp_path / ".lease").read_text())["renewed"] > before
    with pytest.raises(InputError, match="is in use by process"):
      leased(folder, seconds=0.4).__enter__()
  assert list(Path(tmp_path).iterdir()) == []


def test_the_lease_of_a_dead_process_is_taken_over_with_a_line(tmp_path, caplog):
  (tmp_path / ".lease").write_text(json.dumps(
      {"holder": "x", "name": "process 7 on node1", "renewed": time.time() - 30}))
  logging.getLogger("condseg_jax").propagate = True
  with caplog.at_level(logging.WARNING, logger="condseg_jax"), leased(epath.Path(tmp_path), 0.4):
    pass
  assert "taking over from process 7 on node1, which has been silent for 30 s" in caplog.text


def test_of_two_that_write_at_once_the_last_holds_the_lease(tmp_path, monkeypatch):
  """The other finds, after a moment, that the file is not its own."""
  def overwritten(_):
    (tmp_path / ".lease").write_text(json.dumps(
        {"holder": "x", "name": "process 7 on node1", "renewed": time.time()}))

  monkeypatch.setattr(time, "sleep", overwritten)
  with pytest.raises(InputError, match="is in use by process 7 on node1"):
    leased(epath.Path(tmp_path), 0.4).__enter__()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"renewed": "x"}'])
def test_a_damaged_lease_is_no_lease(content, tmp_path):
  (tmp_path / ".lease").write_text(content)
  with leased(epath.Path(tmp_path), 0.4):
    pass
