"""condseg-export, and its bundle used instead of a run."""

import hashlib
import json
import sys

import numpy as np
import pytest

from condseg_jax.cli import evaluate
from condseg_jax.cli import export
from condseg_jax.cli import predict
from condseg_jax.formats.nifti import read_nifti


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
  pytest.importorskip("onnxruntime", reason="needs the extra onnx")
  path = tmp_path_factory.mktemp("bundle") / "model.condseg"
  assert export.main(["e", f"--workdir={run}", f"--out={path}", "--onnx"]) == 0
  return path


def fails(capsys, command, code, *arguments):
  capsys.readouterr()
  assert command.main(["condseg", *map(str, arguments)]) == code
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("condseg: ") and lines[0].endswith(")"), lines
  return lines[0]


def label(root, workdir, out, *more):
  image = root / "test" / "imagesTr" / "case_08.nii.gz"
  assert predict.main(["p", f"--workdir={workdir}", f"--input={image}", f"--output={out}",
                       "--threshold=0.3", "--nopicture", *more]) == 0
  return read_nifti(out / "case_08.nii.gz").array


def test_predictions(root, run, bundle, tmp_path):
  of_run = label(root, run, tmp_path / "run")
  assert of_run.any(), "there must be something to compare"
  np.testing.assert_array_equal(label(root, bundle, tmp_path / "jax"), of_run)
  of_onnx = label(root, bundle, tmp_path / "onnx", "--runtime=onnx")
  assert np.mean(of_onnx == of_run) > 0.999


def test_evaluation(root, run, bundle, tmp_path):
  for workdir, out in ((run, "a"), (bundle, "b")):
    assert evaluate.main(["e", f"--workdir={workdir}", f"--data={root / 'test'}",
                          f"--out={tmp_path / out}"]) == 0
  a, b = (json.loads((tmp_path / out / "summary.json").read_text()) for out in "ab")
  assert a == b and a["n_cases"] == 2


def test_a_bundle_can_be_exported_again(run, bundle, tmp_path, capsys):
  """ONNX is added and kept, as are the facts about the model."""
  plain, full = tmp_path / "plain.condseg", tmp_path / "full.condseg"
  assert export.main(["e", f"--workdir={run}", f"--out={plain}"]) == 0
  assert hashlib.sha256(plain.read_bytes()).hexdigest() in capsys.readouterr().out
  assert plain.stat().st_size < bundle.stat().st_size
  assert export.main(["e", f"--workdir={plain}", f"--out={full}", "--onnx"]) == 0
  assert full.read_bytes() == bundle.read_bytes()
  assert export.main(["e", f"--workdir={full}", f"--out={plain}"]) == 0
  assert plain.read_bytes() == bundle.read_bytes()


def test_bad_input(run, bundle, tmp_path, capsys, monkeypatch):
  run, out = f"--workdir={run}", f"--out={tmp_path / 'm.condseg'}"
  assert "--out: is missing" in fails(capsys, export, 2, run)
  assert ".condseg" in fails(capsys, export, 2, run, f"--out={tmp_path / 'm.zip'}")
  assert "no checkpoint" in fails(capsys, export, 1, f"--workdir={tmp_path}", out)
  assert "cannot be written" in fails(capsys, export, 1, run, f"--out={tmp_path}/no/m.condseg")
  assert "step 2" in fails(capsys, export, 2, f"--workdir={bundle}", out, "--checkpoint=1")
  spoiled = tmp_path / "spoiled.condseg"
  spoiled.write_bytes(bundle.read_bytes()[:-1000])
  assert "is damaged" in fails(capsys, export, 1, f"--workdir={spoiled}", out)
  monkeypatch.setitem(sys.modules, "onnx", None)
  assert "condseg-jax[onnx]" in fails(capsys, export, 1, run, out, "--onnx")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["spoiled.condseg"]


def test_bad_input_of_prediction(root, run, bundle, tmp_path, capsys, monkeypatch):
  def line(code, workdir, *more):
    image = root / "test" / "imagesTr" / "case_08.nii.gz"
    return fails(capsys, predict, code, f"--workdir={workdir}", f"--input={image}",
                 f"--output={tmp_path / 'out'}", *more)

  assert "contains no ONNX graphs" in line(1, run, "--runtime=onnx")
  assert "--partition" in line(2, bundle, "--runtime=onnx", "--partition")
  assert "cannot be read" in line(1, tmp_path / "no.condseg")
  assert "not a model bundle" in line(1, root / "test" / "dataset.json")
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  assert "condseg-jax[onnx]" in line(1, bundle, "--runtime=onnx")
  assert not (tmp_path / "out").exists()
