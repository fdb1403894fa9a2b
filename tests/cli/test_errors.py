"""Bad input gets one line with file, reason and cure, and the right exit code; nothing is lost."""

import gzip
import json
import logging
import os
import shutil
import signal
import time

import numpy as np
import pytest

from condseg_jax.cli import evaluate
from condseg_jax.cli import predict
from condseg_jax.cli import prepare
from condseg_jax.cli import shell
from condseg_jax.cli import train
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from support.dicom_files import write_series
from support.tiny import AFFINE
from support.tiny import case


@pytest.fixture
def says(capsys):
  """Runs a command that must fail, and returns its one line."""
  def fails(command, code, *arguments):
    capsys.readouterr()
    name = command.__name__.rpartition(".")[2]
    assert command.main([f"condseg-{name}", *map(str, arguments)]) == code
    lines = [line for line in capsys.readouterr().err.splitlines()
             if line.startswith(f"condseg-{name}: ")]
    assert len(lines) == 1 and lines[0].endswith(")"), lines
    return lines[0]
  return fails


def image(path, array=None, affine=AFFINE):
  array = case(np.random.default_rng(0))[0] if array is None else array
  write_nifti(path, Volume(array, affine))
  return path


def prediction(says, code, run, path, output, *more):
  return says(predict, code, f"--workdir={run}", f"--input={path}", f"--output={output}", *more)


def test_wrong_usage(says, run, tmp_path):
  assert "--workdir: is missing" in says(predict, 2)
  assert "nonsense" in says(predict, 2, "--nonsense=1")
  assert "extra: is not a flag" in says(prepare, 2, "extra")
  assert "missing.py" in says(train, 2, "--config=missing.py", f"--workdir={tmp_path}")
  (tmp_path / "broken.py").write_text("def get_config(:")
  assert "broken.py" in says(train, 2, f"--config={tmp_path / 'broken.py'}", "--workdir=w")
  assert "data.root" in says(train, 2, "--config=base", f"--workdir={tmp_path / 'new'}")
  line = says(train, 2, "--config=base", "--workdir=w", "--config.data.rot=x")
  assert "data.rot: unknown setting (did you mean data.root?)" in line


@pytest.mark.parametrize("flags, reason", [
    (["--fusion=vote"], "argmax|softmax|independent"),
    (["--threshold=2"], "threshold"),
    (["--threshold=nan"], "--threshold=nan: is not a finite number"),
    (["--step=nan"], "--step=nan: is not a finite number"),
    (["--memory=inf"], "--memory=inf: is not a finite number"),
    (["--within=tumour"], "--within=tumour: is not of the form PART=WHOLE"),
    (["--within=tumour=liver,liver=tumour"], "within: a class is part of itself"),
    (["--partition", "--tta"], "partition: uses no windows"),
    (["--partition", "--two_pass"], "partition: uses no windows"),
    (["--partition", "--locator=elsewhere"], "partition: uses no windows"),
    (["--partition", "--runtime=onnx"], "--partition: is not available with --runtime=onnx"),
    (["--num_parts=2", "--part=2"], "--part=2: is out of range"),
    (["--dicom=pdf"], "pdf")])
def test_wrong_usage_is_noticed_before_a_network_is_loaded(says, tmp_path, flags, reason):
  path = image(tmp_path / "a.nii.gz")
  assert reason in prediction(says, 2, tmp_path / "norun", path, tmp_path / "out", *flags)


def test_input_and_output_are_looked_at_before_a_network_is_loaded(says, tmp_path):
  path, norun = image(tmp_path / "a.nii.gz"), tmp_path / "norun"
  assert "none.nii.gz: does not exist" in prediction(says, 1, norun, tmp_path / "none.nii.gz",
                                                     tmp_path / "out")
  assert "a.nii.gz: is not a folder" in prediction(says, 1, norun, path, path / "out")
  assert "no checkpoint" in prediction(says, 1, norun, path, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_locator_that_is_no_run(says, run, tmp_path):
  path, no_run = image(tmp_path / "image.nii.gz"), tmp_path / "no_run"
  assert "no_run" in prediction(says, 1, run, path, tmp_path / "out", f"--locator={no_run}")


def test_images_that_cannot_be_read(says, run, tmp_path):
  out = tmp_path / "out"
  assert "does not exist" in prediction(says, 1, run, tmp_path / "no.nii.gz", out)
  (tmp_path / "text.nii.gz").write_text("hello")
  assert "text.nii.gz" in prediction(says, 1, run, tmp_path / "text.nii.gz", out)
  whole = image(tmp_path / "whole.nii.gz",
                np.random.default_rng(0).integers(0, 99, (30, 30, 30)).astype(np.int16))
  (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:2000])
  assert "cut.nii.gz" in prediction(says, 1, run, tmp_path / "cut.nii.gz", out)
  nan = np.zeros((8, 9, 10), np.float32)
  nan[1, 2, 3] = np.nan
  path = image(tmp_path / "nan.nii.gz", nan)
  assert "nan.nii.gz" in prediction(says, 1, run, path, out)
  assert not list(out.glob("*.nii.gz"))


def four_dimensional(path):
  import nibabel
  nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), AFFINE), path)
  return path


def test_four_dimensions_are_named(says, run, tmp_path):
  line = prediction(says, 1, run, four_dimensional(tmp_path / "four.nii.gz"), tmp_path / "out")
  assert "4-D" in line and "3 volumes" in line


def test_a_picture_where_a_volume_is_needed(says, run, tmp_path):
  from condseg_jax.formats.picture import write_png
  write_png(tmp_path / "a.png", np.zeros((20, 20), np.uint8))
  line = prediction(says, 1, run, tmp_path / "a.png", tmp_path / "out")
  assert "a.png" in line and "2 axes" in line


def test_empty_folder(says, run, tmp_path):
  (tmp_path / "empty").mkdir()
  assert "contains no image" in prediction(says, 1, run, tmp_path / "empty", tmp_path / "out")


def test_unknown_class_and_preset(says, run, tmp_path):
  path = image(tmp_path / "a.nii.gz")
  line = prediction(says, 2, run, path, tmp_path / "out", "--classes=heart")
  assert "'heart'" in line and "ball, box" in line
  assert "preset" in prediction(says, 2, run, path, tmp_path / "out", "--preset=none")


def test_no_checkpoint(says, tmp_path):
  path = image(tmp_path / "a.nii.gz")
  assert "no checkpoint" in prediction(says, 1, tmp_path / "norun", path, tmp_path / "out")
  assert not (tmp_path / "norun").exists(), "reading must not make a folder"


def test_damaged_checkpoint(says, run, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(run, broken)
  for file in (broken / "checkpoints").rglob("*"):
    if file.is_file() and "state" in str(file) and file.stat().st_size > 200:
      file.write_bytes(file.read_bytes()[:100])
  line = prediction(says, 1, broken, image(tmp_path / "a.nii.gz"), tmp_path / "out")
  assert "damaged" in line


def test_one_bad_case_does_not_stop_the_others(run, tmp_path, capsys):
  folder = tmp_path / "in"
  folder.mkdir()
  image(folder / "good.nii.gz")
  (folder / "bad.nii.gz").write_bytes(gzip.compress(b"no image"))
  code = predict.main(["condseg-predict", f"--workdir={run}", f"--input={folder}",
                       f"--output={tmp_path / 'out'}"])
  assert code == 1
  assert (tmp_path / "out" / "good.nii.gz").exists()
  assert (tmp_path / "out" / "good_overlay.png").exists()
  assert "failed: " in (err := capsys.readouterr().err) and "bad.nii.gz" in err


def test_input_is_never_overwritten(says, run, tmp_path):
  path = image(tmp_path / "a.nii.gz")
  before = path.read_bytes()
  nowhere = tmp_path / "norun"  # refused before a network is looked for
  assert "would overwrite the input image" in prediction(says, 2, nowhere, path, tmp_path)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
  # The names of single masks are known with the classes of the network.
  ball = image(tmp_path / "a_ball.nii.gz")
  (tmp_path / "list.txt").write_text("a.nii.gz\na_ball.nii.gz\n")
  line = prediction(says, 2, run, tmp_path / "list.txt", tmp_path, "--separate")
  assert f"{ball}: the result would overwrite" in line and not (tmp_path / "run.json").exists()


def test_results_are_not_put_among_the_images(says, tmp_path):
  nowhere, folder = tmp_path / "norun", tmp_path / "in"
  folder.mkdir()
  (tmp_path / "link").symlink_to(folder)
  image(folder / "a.nii.gz")
  for output in (folder, folder / "x" / "..", tmp_path / "link"):
    assert "is the folder of the input images" in prediction(says, 2, nowhere, folder, output)
  assert "no checkpoint" in prediction(says, 1, nowhere, folder, folder / "masks")
  write_series(tmp_path / "scan", np.zeros((4, 5, 3)), np.diag([-1.0, -1, 2, 1]))
  for output in (tmp_path / "scan", tmp_path / "scan" / "masks"):
    line = prediction(says, 2, nowhere, tmp_path / "scan", output)
    assert "is the folder of the input images" in line or "is inside the DICOM folder" in line


def copy_of(root, tmp_path):
  """A dataset of one's own to spoil."""
  folder = tmp_path / "ball"
  shutil.copytree(root / "train" / "ball", folder)
  return folder


def preparation(says, folder, tmp_path, *more):
  return says(prepare, 1, "--format=msd", f"--source={folder}", f"--out={tmp_path / 'out'}", *more)


def test_labels_that_do_not_fit(says, root, tmp_path):
  folder = copy_of(root, tmp_path)
  label = folder / "labelsTr" / "case_00.nii.gz"
  write_nifti(label, Volume(np.zeros((8, 20, 17), np.uint8), AFFINE), label=True)
  line = preparation(says, folder, tmp_path)
  assert "case_00.nii.gz" in line and "shape" in line
  moved = AFFINE.copy()
  moved[0, 3] += 5
  write_nifti(label, Volume(np.zeros((8, 20, 18), np.uint8), moved), label=True)
  assert "case_00.nii.gz" in preparation(says, folder, tmp_path)
  write_nifti(label, Volume(np.full((8, 20, 18), 7, np.uint8), AFFINE), label=True)
  assert "unknown label value 7" in preparation(says, folder, tmp_path)
  # What was prepared before the bad case is kept, and no manifest pretends to be complete.
  assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_folder_that_is_no_dataset(says, root, tmp_path):
  assert "dataset.json" in preparation(says, tmp_path, tmp_path)
  folder = copy_of(root, tmp_path)
  (folder / "dataset.json").write_text("{")
  assert "not valid JSON" in preparation(says, folder, tmp_path)
  assert "spleen" in says(prepare, 2, "--format=msd", f"--source={root / 'test'}",
                          f"--out={tmp_path / 'o'}", "--keep=spleen")


def test_evaluation_of_what_has_no_common_class(says, root, run, tmp_path):
  folder = copy_of(root, tmp_path)
  tree = json.loads((folder / "dataset.json").read_text())
  tree["labels"]["1"] = "heart"
  (folder / "dataset.json").write_text(json.dumps(tree))
  line = says(evaluate, 1, f"--workdir={run}", f"--data={folder}", f"--out={tmp_path / 'scores'}")
  assert "annotates no class of this network" in line
  assert "does not exist" in says(evaluate, 1, f"--workdir={run}", f"--data={tmp_path / 'no'}",
                                  f"--out={tmp_path / 'scores'}")


def test_evaluation_goes_on_past_a_bad_case(root, run, tmp_path, capsys):
  folder, out = tmp_path / "test", tmp_path / "scores"
  shutil.copytree(root / "test", folder)
  (folder / "labelsTr" / "case_08.nii.gz").write_bytes(gzip.compress(b"no label"))
  arguments = ["condseg-evaluate", f"--workdir={run}", f"--data={folder}", f"--out={out}"]
  assert evaluate.main(arguments) == 1
  lines = (out / "cases.csv").read_text().splitlines()
  assert len(lines) == 1 + 2 and all("case_09" in line for line in lines[1:])
  assert "failed: case_08: " in capsys.readouterr().err
  (folder / "labelsTr" / "case_09.nii.gz").write_bytes(gzip.compress(b"no label"))
  assert evaluate.main(arguments) == 1
  assert "no case could be scored" in capsys.readouterr().err


def test_evaluation_writes_its_tables(root, run, tmp_path, capsys):
  out = tmp_path / "scores"
  assert evaluate.main(["condseg-evaluate", f"--workdir={run}", f"--data={root / 'test'}",
                        f"--out={out}"]) == 0
  summary = json.loads((out / "summary.json").read_text())
  assert set(summary["classes"]) == {"ball", "box"}
  assert {"mean", "ci95", "n"} <= set(summary["classes"]["ball"]["dice"])
  assert (out / "cases.csv").read_text().count("\n") == 1 + 2 * 2
  assert {p.name for p in out.glob("*.png")} == {"median.png", "worst.png"}
  assert "mean Dice" in capsys.readouterr().out


def test_a_command_filters_the_messages_of_absl_once():
  for _ in range(3):
    assert train.main(["condseg-train", "--help"]) == 0
  filters = logging.getLogger("absl").filters
  assert len([f for f in filters if getattr(f, "__name__", "") == "_fatal_only"]) == 1


def test_sigterm_ends_a_command_in_one_line_after_it_has_cleaned_up(capsys):
  cleaned = []

  def work(_):
    try:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(30)
    finally:
      cleaned.append(True)

  before = signal.getsignal(signal.SIGTERM)
  assert shell.run("A command.", lambda _: None, work, ["condseg-any"]) == 143
  assert cleaned and signal.getsignal(signal.SIGTERM) is before
  assert capsys.readouterr().err.startswith("condseg-any: interrupted by SIGTERM; ")
