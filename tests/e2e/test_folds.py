"""Cross-validation and ensembles: a tiny run of two members, from training to its bundle."""

import dataclasses
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest

import condseg_jax
from condseg_jax.classes import ClassTable
from condseg_jax.cli import evaluate
from condseg_jax.cli import export
from condseg_jax.cli import predict
from condseg_jax.cli import serve
from condseg_jax.cli import train
from condseg_jax.data.store import open_prepared
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.infer.probability_store import read_probability
from condseg_jax.model_io.archive import read_archive
from condseg_jax.model_io.archive import write_archive
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.load import read_model
from condseg_jax.report import trust
from condseg_jax.serve.device import worker_command
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.setup import make_setup
from support.folds import arguments

SCAN = "test/imagesTr/case_08.nii.gz"


@pytest.fixture(scope="module")
def root(fold_root):
  return fold_root


@pytest.fixture(scope="module")
def finished(fold_run):
  return fold_run


@pytest.fixture(scope="module")
def bundle(finished):
  path = finished.parent / "ensemble.condseg"
  assert export.main(["e", f"--workdir={finished}", f"--out={path}"]) == 0
  return path


@pytest.fixture
def refused(capsys):
  """The single line with which a command ends, and its exit code 2."""
  def line(command, *arguments) -> str:
    capsys.readouterr()
    assert command.main(["condseg", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith(")"), lines
    return lines[0]
  return line


def scan(root):
  return condseg_jax.read(root / SCAN)


def probabilities(predictor, volume, folder):
  predictor.predict(volume, clean=False, probabilities=str(folder))
  return np.stack([read_probability(folder, name)
                   for name in predictor.table.names])


def test_no_member_trains_on_its_own_patients(root, finished):
  """Neither by the record nor by what its stream of batches reads; every case is held out once."""
  run = FoldRun.open(finished)
  stores = open_prepared(root / "cache")
  everything = {f"{case.dataset}/{case.id}" for store in stores for case in store.cases}
  patients = {key: place.patient for key, place in run.places.items()}
  assert patients["ball/case_00"] == patients["ball/case_01"]
  assert len(set(patients.values())) == len(everything) - 1
  assert sorted(key for n in range(2) for key in run.fold(n).held_out) == sorted(everything)
  for number in range(2):
    fold = run.fold(number)
    assert fold.training | fold.held_out == everything
    seen = {patients[key] for key in fold.training}
    assert seen.isdisjoint(patients[key] for key in fold.held_out)
    record = read_model(run.member(number)).record
    setup = make_setup(record.config, stores, None, "", fold)
    keys = lambda datasets: {case.key for d in datasets for case in d.cases}
    assert keys(setup.training) == fold.training and keys(setup.held_out) == fold.held_out
    plan = json.loads((run.member(number) / "plan.json").read_text())["datasets"]
    assert {name: entry["cases"] for name, entry in plan.items()} == {
        name: sum(key.startswith(name) for key in fold.training) for name in ("ball", "box")}


def test_members_agree_in_all_but_parameters(finished):
  """The plan is that of all cases, so that the networks see the same images."""
  first, second = (read_model(finished / f"fold_{n}") for n in range(2))
  for part in ("table", "plan", "training", "priors"):
    assert getattr(first.record, part) == getattr(second.record, part), part
  assert (first.record.config.seed, second.record.config.seed) == (0, 1)
  assert all(np.abs(a - b).max() > 0 for a, b in zip(
      jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True) if a.any())


def test_out_of_fold_predictions_are_those_of_the_member(root, finished, tmp_path):
  run = FoldRun.open(finished)
  predictors = [condseg_jax.load(run.member(n)) for n in range(run.count)]
  for store in open_prepared(root / "cache"):
    for case in store.cases:
      found = run.out_of_fold(f"{case.dataset}/{case.id}")
      assert found.case in run.fold(found.member).held_out and found.step == 3
      expected = predictors[found.member].predict(
          store.read_volume(case), clean=False, probabilities=str(tmp_path / case.id))
      assert found.names == expected.names == {"ball": 1, "box": 2}
      for name in found.names:
        probability = found.probability(name)
        assert probability.shape == case.shape and 0 < probability.std()
        np.testing.assert_array_equal(found.mask(name), expected.masks[name])
        np.testing.assert_array_equal(probability, read_probability(tmp_path / case.id, name))
        assert np.all(probability[found.mask(name)] >= 0.5)
        box = (slice(1, 3), slice(4, 9), slice(0, 2))
        np.testing.assert_array_equal(found.probability(name, box), probability[box])
        np.testing.assert_array_equal(found.prediction.masks[name], found.mask(name))


def test_the_scores_are_those_of_the_out_of_fold_masks(root, finished):
  run = FoldRun.open(finished)
  for store in open_prepared(root / "cache"):
    for case in store.cases:
      key, name = f"{case.dataset}/{case.id}", case.annotated[0]
      mask, (truth,) = run.out_of_fold(key).mask(name), store.read_masks(case, [name])
      dice = 2 * (mask & (truth == 1)).sum() / (mask.sum() + (truth == 1).sum())
      assert run.scores["dice"][key] == {name: pytest.approx(dice)}
  low, high = run.scores["ci95"]
  assert low <= run.scores["mean_dice"] <= high
  assert run.scores["mean_dice"] == pytest.approx(
      np.mean([entry["dice"] for entry in run.scores["classes"].values()]))


def test_what_is_measured_for_calibration_is_of_the_member(root, finished):
  """Voxels near the border with the logits of the kept probabilities; soft Dice confidence."""
  run = FoldRun.open(finished)
  for store in open_prepared(root / "cache"):
    for case in store.cases:
      found, name = run.out_of_fold(f"{case.dataset}/{case.id}"), case.annotated[0]
      (voxels,) = found.voxels.values()
      assert list(found.voxels) == [name]
      assert voxels.positive.sum() * 2 == len(voxels.logit) > 100
      assert voxels.weight.sum() == pytest.approx(1, abs=1e-5)
      p, (truth,) = found.probability(name), store.read_masks(case, [name])
      for side in (True, False):
        drawn = 1 / (1 + np.exp(-voxels.logit[voxels.positive == side]))
        assert np.isin(drawn.astype(np.float16), p[(truth == 1) == side].astype(np.float16)
                       ).mean() > 0.98  # rounding of the logit
      for other, score in found.soft_dice.items():
        p, inside = found.probability(other), found.probability(other) >= 0.5
        assert score == pytest.approx(2 * p[inside].sum() / (p.sum() + inside.sum()), rel=2e-2)


def test_classes_of_few_cases_are_left_as_they_are(finished, bundle, capsys):
  run = FoldRun.open(finished)
  assert {name: entry["reason"] for name, entry in run.calibration.items()} == {
      "ball": "4 cases, 5 are needed", "box": "3 cases, 5 are needed"}
  assert run.scalings == run.quality == {}
  said = list(trust.lines(run))
  assert said[0] == "ball: not calibrated: 4 cases, 5 are needed" and len(said) == 4
  assert not {"calibration.json", "quality.json"} & set(read_archive(bundle))


SCALINGS = {"ball": {"slope": 0.5, "intercept": 0.4}, "box": {"slope": 1.5, "intercept": -0.1}}
POOR = {"score": [0.0, 1.0], "dice": [0.2, 0.4], "shift": -0.1, "cases": 12}
CURVE = {"before": [[0.2, 0.1, 0.5], [0.9, 0.6, 0.5]], "after": [[0.1, 0.1, 1.0]]}


@pytest.fixture(scope="module")
def judged(finished):
  """A copy of the run with more cases than it has, as its record says."""
  run = FoldRun.open(shutil.copytree(finished, finished.parent / "judged"))
  entries = {name: {"cases": 12, "error": [0.2, 0.05], "curve": CURVE, **scaling}
             for name, scaling in SCALINGS.items()}
  quality = {name: POOR | {"error": 0.07, "correlation": 0.9} for name in SCALINGS}
  run = dataclasses.replace(run, calibration=entries, quality=quality)
  run.write()
  return run


def test_calibration_is_a_part_of_the_model(root, finished, judged, tmp_path):
  """Of the run and of its bundle, which older programs do not take for one without."""
  path = tmp_path / "judged.condseg"
  assert export.main(["e", f"--workdir={judged.folder}", f"--out={path}"]) == 0
  with zipfile.ZipFile(path) as archive:
    assert json.loads(archive.read("manifest.json"))["version"] == 4
  labels = [condseg_jax.load(source, members=1).predict(scan(root), threshold=0.3).label.array
            for source in (finished, judged.folder, path)]
  ensembles = [condseg_jax.load(source).predict(scan(root), threshold=0.3).label.array
               for source in (finished, path)]
  np.testing.assert_array_equal(*ensembles)  # a mean is not what was fitted
  for source in (judged.folder, path):
    predictor = condseg_jax.load(source)
    assert predictor.calibration == SCALINGS and predictor.quality == judged.quality
  card = read_archive(path)["model_card.md"].decode()
  assert "| calibrated classes | ball, box |" in card
  assert "| classes with a predicted Dice | ball, box |" in card
  assert (labels[0] != labels[1]).any()
  np.testing.assert_array_equal(labels[1], labels[2])
  assert "ball: calibrated by 0.50 z +0.40, error 0.200 → 0.050 on unseen cases; 12 cases" in list(
      trust.lines(judged))
  trust.draw(judged)
  assert (judged.folder / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_poor_results_are_set_aside(root, finished, judged, refused, tmp_path, capsys):
  """With all of their files, exit code 1 and a line; --continue knows them."""
  out = tmp_path / "out"
  arguments = ["p", f"--workdir={judged.folder}", f"--input={root / 'test/imagesTr'}",
               f"--output={out}", "--threshold=0.3", "--probabilities", "--report"]
  files = ["case_08.nii.gz", "case_08_overlay.png", "case_08_probabilities.zarr",
           "case_08_statistics.json"]
  assert predict.main(arguments) == 0
  assert all((out / name).exists() for name in files) and not (out / "refused").exists()
  statistics = json.loads((out / "case_08_statistics.json").read_text())
  ball = statistics["classes"]["ball"]
  assert ball["predicted_dice"] == pytest.approx(0.2 + 0.2 * ball["soft_dice"], abs=1e-5)
  assert ball["dice_bound"] == pytest.approx(ball["predicted_dice"] - 0.1, abs=1e-5)
  capsys.readouterr()
  for more in ([], ["--continue"]):
    assert predict.main([*arguments, "--refuse_below=0.5", *more]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("refused: ") and "below 0.5: ball 0." in line
               for line in lines) == 2, lines
    assert all((out / "refused" / name).exists() for name in files)
    assert not (out / files[0]).exists() and not (out / files[2]).exists()
  assert json.loads((out / "run.json").read_text())["cases"]["case_08"]["status"] == "refused"
  assert "set aside" in (out / "refused" / files[3]).read_text()
  assert predict.main(arguments) == 0
  assert (out / files[0]).exists() and not (out / "refused" / files[0]).exists()
  assert "predicts no Dice" in refused(predict, f"--workdir={finished}", "--refuse_below=0.5",
                                       f"--input={root / SCAN}", f"--output={out}")


def test_an_ensemble_is_the_mean_of_its_members(root, finished, bundle, tmp_path):
  """Of their probabilities, over several windows; from the run and from the bundle."""
  volume = scan(root)
  one = [probabilities(condseg_jax.load(finished / f"fold_{n}"), volume, tmp_path / f"{n}")
         for n in range(2)]
  assert np.abs(one[0] - one[1]).max() > 0.01, "there must be something to average"
  for source in (finished, bundle):
    ensemble = condseg_jax.load(source)
    assert len(ensemble.members) == 2 and not ensemble.members[1].others
    found = probabilities(ensemble, volume, tmp_path / source.name)
    np.testing.assert_allclose(found, (one[0] + one[1]) / 2, atol=1.5e-3)  # kept as float16
    assert ensemble.cleaning == FoldRun.open(finished).cleaning
    first = probabilities(condseg_jax.load(source, members=1), volume, tmp_path / f"{source.name}1")
    np.testing.assert_array_equal(first, one[0])


def test_commands_take_the_run_for_its_ensemble(root, finished, bundle, tmp_path):
  labels = {}
  for name, source, more in (("all", finished, ()), ("bundle", bundle, ()),
                             ("one", finished, ("--members=1",))):
    assert predict.main(["p", f"--workdir={source}", f"--input={root / SCAN}", "--nopicture",
                         "--threshold=0.4", f"--output={tmp_path / name}", *more]) == 0
    labels[name] = read_nifti(tmp_path / name / "case_08.nii.gz").array
  assert labels["all"].any() and (labels["all"] != labels["one"]).any()
  np.testing.assert_array_equal(labels["all"], labels["bundle"])
  for name, source in (("a", finished), ("b", bundle)):
    assert evaluate.main(["e", f"--workdir={source}", f"--data={root / 'test'}",
                          f"--out={tmp_path / name}"]) == 0
  a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
  assert a == b
  card = read_archive(bundle)["model_card.md"].decode()
  assert "| networks, whose probabilities are averaged | 2 |" in card
  assert "| ball | 4 | ball |" in card  # the cases of all members
  assert f"| mean | {FoldRun.open(finished).scores['mean_dice']:.4f} |" in card
  assert worker_command("w", "last", 1)[-3:] == ("w", "last", "1")


def test_a_bundle_of_one_network_is_read_by_older_programs(finished, bundle, tmp_path):
  """An ensemble is not, and an array that one of its members lacks is missed."""
  single = tmp_path / "single.condseg"
  assert export.main(["e", f"--workdir={finished}", f"--out={single}", "--members=1"]) == 0
  for path, version in ((single, 2), (bundle, 3)):
    with zipfile.ZipFile(path) as archive:
      assert json.loads(archive.read("manifest.json"))["version"] == version
  members = read_archive(bundle)
  lost = next(name for name in members if name.startswith("member_1/parameters/"))
  write_archive(single, {name: x for name, x in members.items() if name != lost})
  with pytest.raises(InputError, match="is damaged .*None"):
    condseg_jax.load(single)


def test_a_finished_run_trains_and_predicts_nothing(root, finished, monkeypatch, capsys):
  before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")}
  scores = (finished / "folds.json").read_bytes()
  assert len(before) == 7
  monkeypatch.setattr("condseg_jax.train.loop.make_step_and_state", None)
  monkeypatch.setattr("condseg_jax.train.folds.load", None)
  assert train.main(arguments(root, finished, "--folds=2", "--resume=must")) == 0
  assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")} == before
  assert (finished / "folds.json").read_bytes() == scores
  last = capsys.readouterr().out.splitlines()[-2]
  assert last.startswith("cross-validated: Dice 0.") and "7 cases of 6 patients in 2 folds" in last


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(root, finished, tmp_path):
  """Stopped in its second member and without two predictions of the first."""
  run = shutil.copytree(finished, tmp_path / "run")
  shutil.rmtree(run / "fold_1")
  missing, damaged = sorted((run / "out_of_fold").rglob("*.npz"))[:2]
  content = missing.read_bytes()
  missing.unlink()
  damaged.write_bytes(content[:40])
  first = (run / "fold_0" / "run.json").read_bytes()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("condseg_jax.train.timing.Interrupt.everywhere", lambda *_, **__: True)
    assert train.main(arguments(root, run, "--folds=2", "--probabilities")) == 0
  assert missing.exists() and json.loads((run / "fold_1/run.json").read_text())["step"] == 1
  assert train.main(arguments(root, run, "--folds=2", "--probabilities")) == 0
  assert (run / "fold_0" / "run.json").read_bytes() == first
  assert FoldRun.open(run).scores == FoldRun.open(finished).scores
  for a, b in zip(*(jax.tree.leaves(read_model(folder / "fold_1").params)
                    for folder in (run, finished)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_refused(root, finished, bundle, refused, tmp_path):
  """One line and exit code 2 each."""
  command = lambda workdir, *more: (train, *arguments(root, workdir, *more)[1:])
  assert "dataset 'ball' has 3 patients for 4 folds" in refused(*command(tmp_path / "x",
                                                                         "--folds=4"))
  assert "--folds: must be at least 2" in refused(*command(tmp_path / "x", "--folds=1"))
  assert "was started with 2" in refused(*command(finished, "--folds=3"))
  assert "holds a cross-validation (add the --folds" in refused(*command(finished))
  assert f"{finished}: holds a cross-validation" in refused(*command(finished / "fold_1"))
  assert "holds a run without folds" in refused(*command(finished / "fold_1", "--folds=2"))
  assert "another seed" in refused(*command(finished, "--folds=2", "--config.seed=5"))
  assert "--probabilities: has no effect" in refused(*command(tmp_path / "x", "--probabilities"))
  files = (f"--input={root / SCAN}", f"--output={tmp_path / 'out'}")
  for source in (finished, bundle):
    assert "--members: is 3" in refused(predict, f"--workdir={source}", "--members=3", *files)
  assert "--members: is 2" in refused(predict, f"--workdir={finished / 'fold_0'}", "--members=2",
                                      *files)
  assert "a single one with --members" in refused(predict, f"--workdir={finished}", "--partition",
                                                  *files)
  assert "--members: is 3" in refused(serve, f"--workdir={finished}", "--members=3", "--port=0")
  assert "--members=1" in refused(export, f"--workdir={finished}", "--onnx",
                                  f"--out={tmp_path / 'm.condseg'}")


@pytest.mark.parametrize("what", ["class table", "plan", "network"])
def test_members_of_different_kinds_are_not_averaged(what, root, finished, refused, tmp_path,
                                                     monkeypatch):
  changes = {
      "class table": lambda r: r._replace(table=ClassTable.create(["ball", "cube"])),
      "plan": lambda r: r._replace(plan=dataclasses.replace(r.plan, mean=r.plan.mean + 1)),
      "network": lambda r: r._replace(config=r.config.override({"model.norm": "group"}))}
  read, place = Checkpoints.read_record, str(finished / "fold_1")
  monkeypatch.setattr(Checkpoints, "read_record", lambda self, step: (
      changes[what] if str(self.folder).startswith(place) else lambda r: r)(read(self, step)))
  line = refused(predict, f"--workdir={finished}", f"--input={root / SCAN}",
                 f"--output={tmp_path}")
  assert f"{place}: has another {what} than the members before it" in line
