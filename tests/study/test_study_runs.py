"""A whole study of the tiny datasets: trained once, taken up again, told, and never mixed."""

import csv
import dataclasses
import json
import shutil
import signal
import threading

import pytest

from condseg_jax.cli.study import main
from condseg_jax.study import declare
from condseg_jax.study import fingerprint as keys
from condseg_jax.study import plan
from condseg_jax.study import records
from condseg_jax.study import runner
from condseg_jax.system.lock import locked
from condseg_jax.train.timing import Interrupt

pytestmark = pytest.mark.slow


def arguments(experiments, data, out, *more):
  return ["study", "tiny", f"--data={data}", f"--out={out}", f"--experiments={experiments}", *more]


@pytest.fixture(scope="module")
def out(experiments, data, tmp_path_factory):
  out = tmp_path_factory.mktemp("results")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    assert main(arguments(experiments, data, out)) == 0
  return out


def test_one_row_for_each_variant_and_seed(out):
  with open(out / "tiny.csv", encoding="utf-8") as stream:
    rows = list(csv.DictReader(stream))
  assert [(r["variant"], r["seed"]) for r in rows] == [
      ("cond_dec", "0"), ("cond_2nd", "0")]
  for row in rows:
    dice = [float(row[f"dice {name}"]) for name in ("ball", "box")]
    assert float(row["mean_dice"]) == pytest.approx(sum(dice) / 2, abs=1e-6)
    assert row["steps"] == "4" and int(row["parameters"]) > 100 and len(row["key"]) == 16


def test_records_hold_what_reports_need(out):
  record = records.of_study(out, "tiny")[0]
  scores = record["scores"]
  assert scores["cases"] == ["case_08", "case_09"] and scores["classes"] == ["ball", "box"]
  for c in range(2):
    for k in range(2):
      tp, fp, fn = (scores[name][c][k] for name in ("tp", "fp", "fn"))
      assert scores["dice"][c][k] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-5)
  table = scores["confusion"][""]
  voxels = 2 * 8 * 20 * 18
  assert sum(map(sum, table)) == voxels  # argmax: every voxel is given to one class or none
  assert [table[k][k] for k in range(2)] == [sum(t[k] for t in scores["tp"]) for k in range(2)]
  assert record["curves"][0]["step"] == [2, 4]
  assert record["configs"][0]["data"]["root"] == ""


def test_a_cluster_trains_and_scores_as_one_process(out, experiments, data, tmp_path,
                                                    monkeypatch, capsys):
  """The records are the same but for times; a trial that fails does not stop the other."""
  for name, value in (("JAX_DISABLE_MOST_OPTIMIZATIONS", "1"), ("JAX_NUM_CPU_DEVICES", "2"),
                      ("JAX_PLATFORMS", "cpu")):  # as tests/conftest.py sets this process
    monkeypatch.setenv(name, value)
  plan_of = plan.jobs([declare.load("tiny", experiments)[0]],
                      plan.RunPaths(experiments, data, tmp_path))
  spoilt = tmp_path / "work" / "runs" / plan_of[1].keys[0]
  spoilt.parent.mkdir(parents=True)
  spoilt.write_text("no folder")
  command = arguments(experiments, data, tmp_path, "--cluster=local:2")
  assert main(command) == 1
  assert "1 trial(s): failed, the first: tiny: " in capsys.readouterr().err
  spoilt.unlink()
  assert main(command) == 0
  one, two = ({(r["variant"], r["seed"]): r for r in records.of_study(folder, "tiny")}
              for folder in (out, tmp_path))
  assert one.keys() == two.keys()
  for key, record in one.items():
    assert record["scores"] == two[key]["scores"] and record["key"] == two[key]["key"]


def test_nothing_is_done_twice(out, experiments, data, monkeypatch, capsys):
  def trained(*_, **__):
    raise AssertionError("trained again")

  before = {p: p.read_bytes() for p in out.glob("records/*/*")}
  with monkeypatch.context() as patch:
    patch.setattr("condseg_jax.study.runner.train", trained)
    assert main(arguments(experiments, data, out)) == 0
    assert {p: p.read_bytes() for p in out.glob("records/*/*")} == before
    # One record lost: it is scored again, from what was trained.
    lost = next(iter(before))
    lost.unlink()
    assert main(arguments(experiments, data, out)) == 1
    assert "1 trial(s): failed" in capsys.readouterr().err
  capsys.readouterr()
  assert main(arguments(experiments, data, out, "--dry_run")) == 0
  assert "1 of 2 trials are done" in capsys.readouterr().out
  assert main(arguments(experiments, data, out)) == 0
  again, first = json.loads(lost.read_text()), json.loads(before[lost])
  assert again["scores"] == first["scores"]
  assert again["seconds"]["training"] == first["seconds"]["training"]


def test_a_study_that_was_interrupted_goes_on(out, experiments, data, tmp_path, monkeypatch,
                                              capsys):
  """Ctrl-C in the second step of a training: its state is saved, and the rest is not redone."""
  copy = shutil.copytree(out, tmp_path / "copy")
  steps = []

  def asked(*_, **__):
    steps.append(None)
    if len(steps) == 2:
      signal.raise_signal(signal.SIGINT)
    return caught(*_, **__)

  caught = Interrupt.everywhere
  command = arguments(experiments, data, copy, "--seeds=0,7", "--only=cond_dec")
  with monkeypatch.context() as patch:
    patch.setattr(Interrupt, "everywhere", asked)
    assert main(command) == 130
  assert "interrupted" in capsys.readouterr().err
  runs = [json.loads(p.read_text()) for p in copy.glob("work/runs/*/run.json")]
  assert sorted((run["status"], run["step"]) for run in runs) == [
      ("finished", 4), ("finished", 4), ("interrupted", 2)]
  assert len(list(copy.glob("records/tiny/*.json"))) == 2
  assert main(command) == 0
  assert len(steps) == 2 and len(list(copy.glob("records/tiny/*.json"))) == 3
  rows = records.of_study(copy, "tiny")
  assert [r["seed"] for r in rows if r["label"] == "cond_dec"] == [0, 7]


def test_studies_share_what_is_the_same(out, experiments, data, monkeypatch):
  study = (experiments / "studies" / "tiny.py").read_text()
  other = experiments.parent / "other.py"
  other.write_text(study.replace('Study("tiny"', 'Study("other"'))

  def trained(*_, **__):
    raise AssertionError("trained again")

  monkeypatch.setattr("condseg_jax.study.runner.train", trained)
  assert main(["study", str(other), *arguments(experiments, data, out)[2:]]) == 0
  ours, theirs = (records.of_study(out, name) for name in ("tiny", "other"))
  assert [r["scores"] for r in ours] == [r["scores"] for r in theirs]
  assert {r["study"] for r in theirs} == {"other"}


def test_what_a_study_declares_anew_is_told(out, experiments, data, tmp_path):
  """Another reference: nothing is trained, and the tables compare with it."""
  copy = shutil.copytree(out, tmp_path / "copy")
  other = experiments.parent / "tiny.py"
  text = (experiments / "studies" / "tiny.py").read_text()
  other.write_text(text.replace('"input")))', '"input")), reference="cond_2nd")'))
  assert main(["study", str(other), *arguments(experiments, data, copy)[2:]]) == 0
  assert {r["against"] for r in records.of_study(copy, "tiny")} == {"cond_2nd"}
  assert "| cond_dec | cond_2nd |" in (copy / "tiny.md").read_text()


def test_a_report_that_fails_stops_no_training(out, experiments, data, tmp_path, monkeypatch,
                                               capsys):
  """The tables of a study that is done cannot be made; the trial of another is run, and told."""
  copy = shutil.copytree(out, tmp_path / "copy")
  first = sorted((copy / "records" / "tiny").glob("*.json"))[0]
  old = first.with_name("old-s0-0000000000000000.json")
  old.write_text(json.dumps(json.loads(first.read_text()) | {"key": "0" * 64}))
  studies = declare.load("tiny", experiments)
  other = dataclasses.replace(studies[0], name="other")
  monkeypatch.setattr(declare, "load", lambda *_: [*studies, other])
  assert main(arguments(experiments, data, copy)) == 1
  assert "failed, the first: tiny: study tiny: holds two results" in capsys.readouterr().err
  assert len(records.of_study(copy, "other")) == 2 and (copy / "other.md").exists()


def test_two_processes_do_not_train_the_same(out, experiments, data, tmp_path):
  """The second waits for the first, and takes its result."""
  copy = shutil.copytree(out, tmp_path / "copy")
  places = plan.RunPaths(experiments, data, copy)
  job = plan.jobs(declare.load("tiny", experiments), places, only=["cond_dec"])[0]
  record = json.loads(job.path.read_text())
  job.path.unlink()
  found = []
  second = threading.Thread(target=lambda: found.append(runner.run_job(job, places)))
  with locked(places.work / "locks" / job.keys[0]):
    second.start()
    second.join(0.5)
    assert second.is_alive() and not job.path.exists()
    records.write(job.path, record)
  second.join(60)
  assert found == [record]


def test_results_of_other_code_are_not_mixed(out, experiments, data, tmp_path, capsys):
  """One record says that it is of other source files: no table, one line, and a way out."""
  copy = tmp_path / "records" / "tiny"
  copy.mkdir(parents=True)
  for number, path in enumerate(sorted((out / "records" / "tiny").glob("*.json"))):
    record = json.loads(path.read_text())
    if number == 0:
      record |= {"source": "0" * 64, "key": "0" * 64}
      path = path.with_name("cond_dec-s0-0000000000000000.json")
    (copy / path.name).write_text(json.dumps(record))
  assert main(["study", "tiny", f"--out={tmp_path}", f"--experiments={experiments}",
               "--tables"]) == 1
  message = capsys.readouterr().err
  assert message.count("\n") == 1 and "000000000000: 1 record(s)" in message
  assert keys.source_digest()[:12] in message and "--drop_old" in message
  assert not (tmp_path / "tiny.csv").exists()


def test_prune_takes_checkpoints_of_what_is_done(out, experiments, data, tmp_path, capsys):
  """And of nothing else: those of a trial whose record is lost stay."""
  copy = shutil.copytree(out, tmp_path / "copy")
  lost, kept = sorted((copy / "records" / "tiny").glob("*.json"))
  needed, = json.loads(lost.read_text())["members"]
  done, = json.loads(kept.read_text())["members"]
  lost.unlink()
  folders = [copy / "work" / "runs" / key / "checkpoints" for key in (needed, done)]
  variant = "cond_dec" if kept.name.startswith("cond_dec") else "cond_2nd"
  command = arguments(experiments, data, copy, f"--only={variant}")
  assert main(command) == 0
  assert [f.is_dir() for f in folders] == [True, True]
  assert main([*command, "--prune"]) == 0
  assert [f.is_dir() for f in folders] == [True, False]
  assert (folders[1].parent / "metrics.jsonl").exists()
  assert str(folders[1]) in capsys.readouterr().out
  assert main(command) == 0
  assert not folders[1].exists()


def test_old_records_go_when_asked(out, experiments, data, tmp_path, capsys):
  copy = shutil.copytree(out, tmp_path / "copy")
  first = sorted((copy / "records" / "tiny").glob("*.json"))[0]
  old = first.with_name("cond_dec-s0-0000000000000000.json")
  old.write_text(json.dumps(json.loads(first.read_text()) | {"key": "0" * 64}))
  assert main(arguments(experiments, data, copy)) == 1
  assert "two results" in capsys.readouterr().err
  assert main(arguments(experiments, data, copy, "--drop_old")) == 0
  assert str(old) in capsys.readouterr().out
  assert not old.exists() and first.exists()


@pytest.mark.parametrize("flags, reason", [
    (["--only=nobody"], "no variant 'nobody'"), (["--seeds=x"], "--seeds"),
    (["--experiments=nowhere"], "is unknown"), (["--tables", "--seeds=1"], "has no effect with"),
    (["--paper=x.md"], "needs --tables")])
def test_wrong_usage_is_told_in_a_line(flags, reason, experiments, data, tmp_path, capsys):
  assert main([*arguments(experiments, data, tmp_path), *flags]) == 2
  assert reason in capsys.readouterr().err
