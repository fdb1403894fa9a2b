"""condseg-audit on the cross-validated run of conftest, told what its members have found."""

import json
import shutil

import numpy as np
import pytest

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.cli import audit
from condseg_jax.data.selection import bare_datasets
from condseg_jax.data.selection import datasets
from condseg_jax.data.store import open_prepared
from condseg_jax.geometry import Volume
from condseg_jax.infer.prediction import Masks
from condseg_jax.infer.prediction import Prediction
from condseg_jax.model_io.fold_run import FoldRun

NAMES = {"ball": 1, "box": 2}
MOVED = "ball/case_02"


@pytest.fixture(scope="module")
def run(fold_run, fold_root, tmp_path_factory):
  """The run, whose members have found every annotated organ, one of them two voxels away."""
  folder = shutil.copytree(fold_run, tmp_path_factory.mktemp("told") / "run")
  told = FoldRun.open(folder)
  for store in open_prepared(fold_root / "cache"):
    for case in store.cases:
      if f"{case.dataset}/{case.id}" in told.places:
        name, = case.annotated
        mask = store.read_masks(case, [name])[0] == 1
        if f"{case.dataset}/{case.id}" == MOVED:
          mask = np.roll(mask, 4, axis=2)
        label = Volume((mask * NAMES[name]).astype(np.uint8), np.asarray(case.affine))
        masks = Masks(tuple(NAMES), lambda n, label=label: label.array == NAMES[n])
        told.write_out_of_fold(f"{case.dataset}/{case.id}",
                               Prediction(label, NAMES, masks, dict.fromkeys(NAMES)), 3,
                               probabilities=False)
  return folder


def command(run, data, *more):
  return audit.main(["condseg-audit", f"--workdir={run}", f"--data={data}", *more])


def test_the_mask_that_does_not_fit_comes_first(run, fold_root, tmp_path, capsys):
  assert command(run, fold_root / "cache", "--count=2", f"--json={tmp_path / 'audit.json'}",
                 f"--report={tmp_path / 'audit.html'}") == 0
  rows = json.loads((tmp_path / "audit.json").read_text())["rows"]
  assert len(rows) == 7 and (rows[0]["case"], rows[0]["class"]) == (MOVED, "ball")
  assert rows[0]["kind"] == "shifted" and rows[0]["score"] > 0.2
  assert all(row["score"] == 0 and row["dice"] == 1 for row in rows[1:])
  printed = capsys.readouterr().out.splitlines()
  assert MOVED in printed[1] and len(printed) == 4 and printed[3].startswith("report")
  assert printed[1].split()[0] == "1"
  page = (tmp_path / "audit.html").read_text()
  assert page.count("guess: ") == 2 and f"1. {MOVED}: ball" in page


@pytest.mark.slow
def test_a_cluster_ranks_as_one_process(run, fold_root, tmp_path):
  files = [tmp_path / "one.json", tmp_path / "two.json"]
  for path, more in zip(files, ((), ("--cluster=local:1",)), strict=True):
    assert command(run, fold_root / "cache", f"--json={path}", *more) == 0
  assert files[0].read_bytes() == files[1].read_bytes()


def test_masks_are_left_out(run, fold_root, tmp_path, capsys):
  """By their numbers; their cases are images without masks, all others are shared."""
  out = tmp_path / "out"
  for _ in range(2):  # the second finds everything done
    assert command(run, fold_root / "cache", f"--out={out}", "--drop=1") == 0
  assert "without 1 masks" in capsys.readouterr().out
  before, after = (open_prepared(folder) for folder in (fold_root / "cache", out))
  assert [store.root.name for store in after] == [store.root.name for store in before]
  for old, new in zip(before, after, strict=True):
    dropped = new.provenance["audit"]["rows"]
    assert [row["case"] for row in dropped] == ([MOVED] if old.cases[0].dataset == "ball" else [])
    for one, other in zip(old.cases, new.cases, strict=True):
      assert other == one if one.key != MOVED else (
          other.annotated == () and other.dataset == "ball, masks left out")
  assert [d.name for d in datasets(after)] == ["ball", "box"]
  assert [d.name for d in bare_datasets(after)] == ["ball, masks left out"]
  assert command(run, fold_root / "cache", f"--out={out}", "--drop=2") == 2
  assert "another choice" in capsys.readouterr().err


def test_doubtful_voxels_are_left_out(run, fold_root, tmp_path):
  """Where mask and finding disagree, nothing is known; elsewhere the mask stays."""
  assert command(run, fold_root / "cache", f"--out={tmp_path / 'out'}", "--drop=1-2",
                 "--doubtful") == 0
  before, after = (next(s for s in open_prepared(folder) if s.cases[0].dataset == "ball")
                   for folder in (fold_root / "cache", tmp_path / "out"))
  number = next(n for n, case in enumerate(before.cases) if case.key == MOVED)
  old, = before.read_masks(before.cases[number], ["ball"])
  new, = after.read_masks(after.cases[number], ["ball"])
  doubtful = (old == POSITIVE) != FoldRun.open(run).out_of_fold(MOVED).mask("ball")
  assert doubtful.any() and (new[doubtful] == UNLABELLED).all()
  np.testing.assert_array_equal(new[~doubtful], old[~doubtful])
  assert after.cases[number].annotated == ("ball",)
  others = [case.key for case in before.cases if case.key != MOVED]
  for one, other in zip(before.cases, after.cases, strict=True):
    if one.key in others:  # without a doubtful voxel, written again or not
      assert other.sha256 == one.sha256


@pytest.mark.parametrize("flags, message", [
    (["--out=OUT"], "needs the other"), (["--drop=1"], "needs the other"),
    (["--out=OUT", "--drop=0"], "is not a number or range"),
    (["--out=OUT", "--drop=3-1"], "is not a number or range"),
    (["--out=OUT", "--drop=1,x"], "is not a number or range"),
    (["--out=OUT", "--drop=8"], "8 is beyond the 7 masks"),
    (["--out=DATA/inside", "--drop=1"], "is in the data")])
def test_bad_choices(run, fold_root, tmp_path, capsys, flags, message):
  data = fold_root / "cache"
  given = [flag.replace("OUT", str(tmp_path / "out")).replace("DATA", str(data)) for flag in flags]
  assert command(run, data, *given) == 2
  assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_bad_input(run, fold_root, tmp_path, capsys):
  def refused(*arguments):
    assert command(*arguments) == 2
    line, = capsys.readouterr().err.splitlines()
    return line
  assert "folds.json is missing (train it with --folds)" in refused(
      run / "fold_0", fold_root / "cache")
  assert "is not a prepared store" in refused(run, tmp_path)
  store = open_prepared(fold_root / "cache")[0]
  shutil.copytree(store.root, tmp_path / "other")
  manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
  for case in manifest["cases"]:
    case["dataset"] = "another"
  (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
  assert "holds no case that" in refused(run, tmp_path / "other")
