"""condseg-audit on the cross-validated run of conftest, told what its members have found."""

import json
import shutil

import numpy as np
import pytest

from condseg_jax.cli import audit
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
  page = (tmp_path / "audit.html").read_text()
  assert page.count("guess: ") == 2 and f"1. {MOVED}: ball" in page


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
