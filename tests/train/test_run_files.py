"""run.json against a clock that the test sets."""

import json
from types import SimpleNamespace

from condseg_jax.train import run_files
from condseg_jax.train.run_files import RunFiles


def session(workdir, monkeypatch, start, end, **arguments):
  now = SimpleNamespace(time=lambda: now.value, value=start)
  monkeypatch.setattr(run_files, "time", now)
  writer = RunFiles(workdir, {}, **arguments)
  now.value = end
  writer.finish("finished", {"step": 6})
  return json.loads((workdir / "run.json").read_text())


def test_the_seconds_of_all_sessions_add_up(tmp_path, monkeypatch):
  assert session(tmp_path, monkeypatch, 100.0, 107.5)["seconds"] == 7.5
  assert session(tmp_path, monkeypatch, 500.0, 502.0, resumed=True)["seconds"] == 7.5 + 2.0
  # One that starts afresh in the same folder counts its own only.
  run = session(tmp_path, monkeypatch, 900.0, 903.0)
  assert (run["seconds"], run["status"], run["step"]) == (3.0, "finished", 6)


def test_a_damaged_record_does_not_stop_a_run(tmp_path, monkeypatch):
  for text in ("{", "[]", "{}", '{"seconds": null}'):
    (tmp_path / "run.json").write_text(text)
    assert session(tmp_path, monkeypatch, 10.0, 11.0, resumed=True)["seconds"] == 1.0
