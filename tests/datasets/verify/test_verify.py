"""Verifying: every defect is found by its name, once, and what is sound passes."""

import errno
import gzip
import json
import multiprocessing
import os
from pathlib import Path
import random
import shutil
import time

import nibabel
import numpy as np
import pytest

from condseg_jax.cli import verify as command
from condseg_jax.data.store import Store
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import prepare
from condseg_jax.datasets.verify.raw_checks import verify
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume

SHAPE = (10, 9, 8)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
LABELS = {"0": "background", "1": "liver", "2": "spleen"}
# Case that is spoiled → severity and name of its one finding.
DEFECTS = {
    "truncated": "error", "not_finite": "error", "shape": "error", "affine": "error",
    "affine_near": "warning", "direction": "warning", "float_label": "warning",
    "fractional_label": "error", "mask_0_255": "error", "unknown_value": "error",
    "empty_mask": "warning", "duplicate": "error", "spacing_outlier": "warning",
    "intensity_outlier": "warning", "4-D": "error", "2-D": "error", "constant_image": "warning",
    "unreadable": "error",
}


def example(seed):
  rng = np.random.default_rng(seed)
  label = np.zeros(SHAPE, np.uint8)
  label[2:5, 2:5, 2:6] = 1
  label[6:9, 5:8, 2:6] = 2
  return np.rint(rng.normal(0, 20, SHAPE) + 60 * label).astype(np.int16), label


def write(root, ids, labels=LABELS, val=()):
  for folder in ("imagesTr", "labelsTr"):
    (root / folder).mkdir(parents=True)
  for number, name in enumerate(ids):
    image, label = example(number)
    write_nifti(root / "imagesTr" / f"{name}.nii.gz", Volume(image, AFFINE))
    write_nifti(root / "labelsTr" / f"{name}.nii.gz", Volume(label, AFFINE), label=True)
  pairs = [{"image": f"imagesTr/{i}.nii.gz", "label": f"labelsTr/{i}.nii.gz"} for i in ids]
  (root / "dataset.json").write_text(json.dumps(
      {"modality": {"0": "CT"}, "labels": labels, "training": pairs}))
  (root / "splits.json").write_text(json.dumps(
      {"train": [i for i in ids if i not in val], "val": list(val)}))
  return root


def spoil(root, name):
  """Gives the case that is called after a defect that defect."""
  image, label = root / "imagesTr" / f"{name}.nii.gz", root / "labelsTr" / f"{name}.nii.gz"
  voxels, classes = example(100 + len(name))
  moved = AFFINE.copy()
  match name:
    case "truncated":
      image.write_bytes(image.read_bytes()[:-200])
    case "not_finite":
      voxels = voxels.astype(np.float32)
      voxels[1, 2, 3] = np.inf
      write_nifti(image, Volume(voxels, AFFINE))
    case "shape":
      write_nifti(label, Volume(classes[:-1], AFFINE), label=True)
    case "affine" | "affine_near":
      moved[0, 3] += 3.0 if name == "affine" else 0.05
      write_nifti(label, Volume(classes, moved), label=True)
    case "direction":
      moved[0, 1] = 0.2
      write_nifti(image, Volume(voxels, moved))
      write_nifti(label, Volume(classes, moved), label=True)
    case "float_label":
      write_nifti(label, Volume(classes.astype(np.float32), AFFINE))
    case "fractional_label":
      write_nifti(label, Volume(classes * np.float32(0.7), AFFINE))
    case "mask_0_255":
      write_nifti(label, Volume((classes > 0) * np.uint8(255), AFFINE), label=True)
    case "unknown_value":
      write_nifti(label, Volume(classes * np.uint8(4), AFFINE), label=True)
    case "empty_mask":
      write_nifti(label, Volume(classes * (classes == 1), AFFINE), label=True)
    case "duplicate":
      shutil.copy(root / "imagesTr" / "good_0.nii.gz", image)
    case "spacing_outlier":
      moved[:3, :3] *= 5
      write_nifti(image, Volume(voxels, moved))
      write_nifti(label, Volume(classes, moved), label=True)
    case "intensity_outlier":
      write_nifti(image, Volume(voxels + np.int16(1024), AFFINE))
    case "4-D":
      nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), AFFINE), image)
    case "2-D":
      nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE[:2], np.int16), AFFINE), image)
    case "constant_image":
      write_nifti(image, Volume(np.full_like(voxels, 60), AFFINE))
    case "unreadable":
      image.write_bytes(gzip.compress(b"hello"))


def found(findings):
  return sorted((f.name, f.severity) for f in findings)


def test_one_of_each_defect_gives_one_finding_each(tmp_path, capsys):
  names = [f"good_{i}" for i in range(6)]
  labels = {**LABELS, "3": "pancreas"}  # which no case shows
  root = write(tmp_path / "raw", [*names, *DEFECTS], labels, val=["duplicate"])
  for name in DEFECTS:
    spoil(root, name)
  file = tmp_path / "findings.json"
  assert command.main(["condseg-verify", str(root), f"--json={file}"]) == 1
  tree = json.loads(file.read_text())
  assert tree["cases"] == len(names) + len(DEFECTS)
  expected = {(name.removesuffix("_near"), name, severity) for name, severity in DEFECTS.items()}
  expected.add(("class_nowhere", "pancreas", "error"))
  assert len(tree["findings"]) == len(expected)
  for kind, case, severity in expected:
    one, = [f for f in tree["findings"]
            if f["name"] == kind and (case in f["file"] or case in f["finding"])
            and f["severity"] == severity]
    assert one["finding"] and one["cure"]
  printed = capsys.readouterr()
  assert "Traceback" not in printed.err
  lines = printed.out.splitlines()
  errors = sum(severity == "error" for _, _, severity in expected)
  assert lines[-1] == f"24 cases read: {errors} errors, {len(expected) - errors} warnings"
  assert len(lines) == len(expected) + 2 and lines[0].split() == ["name", "file", "finding", "cure"]


def test_sound_data_pass(tmp_path, capsys):
  root = write(tmp_path / "raw", ["a", "b", "c", "d", "e"], val=["e"])
  assert verify(root, progress=False) == ([], 5)
  assert command.main(["condseg-verify", str(root)]) == 0
  assert "5 cases read: 0 errors, 0 warnings" in capsys.readouterr().out
  prepare(read_msd(root), tmp_path / "out", progress=False)
  assert verify(tmp_path / "out", progress=False) == ([], 5)


def test_warnings_alone_are_no_failure(tmp_path):
  root = write(tmp_path / "raw", ["float_label", "a"])
  spoil(root, "float_label")
  assert command.main(["condseg-verify", str(root)]) == 0


def test_several_datasets_are_checked_together(tmp_path):
  """The leak of one into the other's validation is seen."""
  write(tmp_path / "all" / "one", ["good_0", "b"])
  other = write(tmp_path / "all" / "two", ["duplicate", "d"], val=["duplicate"])
  shutil.copy(tmp_path / "all/one/imagesTr/good_0.nii.gz", other / "imagesTr/duplicate.nii.gz")
  findings, count = verify(tmp_path / "all", progress=False)
  # Both sets are drawn alike, so that d is a copy of b: in one split that is no leak.
  assert found(findings) == [("duplicate", "error")] and count == 4


def test_a_patient_in_two_splits_is_an_error_of_both_commands(tmp_path, capsys):
  ids = ["liver_001_0", "liver_001_1", "liver_001_2", "liver_002_0"]
  root = write(tmp_path / "raw", ids, val=["liver_001_2", "liver_002_0"])
  findings, count = verify(root, progress=False)
  assert found(findings) == [("leak", "error")] and count == 4
  assert "liver_001_0 of the same patient (liver_001) in train" in findings[0].finding
  with pytest.raises(InputError, match="liver_001_2.nii.gz: is in val, but liver_001_0"):
    prepare(read_msd(root), tmp_path / "out", progress=False)
  tree = json.loads((root / "dataset.json").read_text())
  (root / "dataset.json").write_text(json.dumps(tree | {"patient": "^(.*)$"}))
  assert verify(root, progress=False) == ([], 4)


def test_an_unusable_dataset_is_a_finding_and_the_others_are_read(tmp_path):
  write(tmp_path / "all" / "good", ["a"])
  (tmp_path / "all" / "bad").mkdir()
  (tmp_path / "all" / "bad" / "dataset.json").write_text("{")
  findings, count = verify(tmp_path / "all", progress=False)
  assert count == 1 and len(findings) == 1 and "not valid JSON" in findings[0].finding


def test_a_missing_label_hides_nothing_else(tmp_path):
  """Of a layout that pairs files by name; of the other cases everything is read."""
  root = write(tmp_path / "raw", ["a", "truncated", "c"])
  spoil(root, "truncated")
  tree = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz",
          "labels": {"background": 0, "liver": 1, "spleen": 2}}
  (root / "dataset.json").write_text(json.dumps(tree))
  for path in (root / "imagesTr").iterdir():
    path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
  (root / "labelsTr" / "a.nii.gz").unlink()
  findings, count = verify(root, progress=False)
  assert found(findings) == [("no_label", "error"), ("truncated", "error")] and count == 2


def test_the_label_of_an_unreadable_image_is_read(tmp_path):
  root = write(tmp_path / "raw", ["truncated", "b"])
  spoil(root, "truncated")
  write_nifti(root / "labelsTr" / "truncated.nii.gz",
              Volume(example(0)[1] * np.uint8(4), AFFINE), label=True)
  findings, _ = verify(root, progress=False)
  assert found(findings) == [("truncated", "error"), ("unknown_value", "error")]


def test_what_the_system_does_not_let_be_read_is_a_finding(tmp_path, monkeypatch):
  root = write(tmp_path / "raw", ["a", "b"])
  read = files.read_volume

  def denied(path, *arguments):
    if Path(path).name == "a.nii.gz":
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return read(path, *arguments)

  monkeypatch.setattr(files, "read_volume", denied)
  findings, count = verify(root, progress=False)
  assert count == 2 and len(findings) == 2  # of image and label
  assert all("cannot be read: Permission denied" in str(finding) for finding in findings)


def test_classes_without_a_training_case(tmp_path):
  root = write(tmp_path / "raw", ["a", "b", "c"])
  splits = {"train": {"liver": ["a", "b"]}, "val": ["c"]}
  (root / "splits.json").write_text(json.dumps(splits))
  prepare(read_msd(root), tmp_path / "out", progress=False)
  for path in (root, tmp_path / "out"):
    findings, _ = verify(path, progress=False)
    assert found(findings) == [("class_nowhere", "warning")] and "'spleen'" in findings[0].finding
  (root / "splits.json").write_text(json.dumps({"test": ["c"]}))
  assert verify(root, progress=False) == ([], 1)
  splits["train"]["spleen"] = []
  (root / "splits.json").write_text(json.dumps(splits))
  assert found(verify(root, progress=False)[0]) == [("class_nowhere", "error")]


def test_a_folder_of_no_known_layout_is_told(tmp_path):
  write(tmp_path / "all" / "good", ["a"])
  (tmp_path / "all" / "plain" / "images").mkdir(parents=True)
  (tmp_path / "all" / ".hidden").mkdir()
  findings, count = verify(tmp_path / "all", progress=False)
  assert found(findings) == [("unknown_layout", "warning")] and count == 1
  assert findings[0].file.endswith("plain")


def test_a_picture_among_volumes_and_a_layout_that_is_named(tmp_path):
  for name in "abc":
    image, label = example(ord(name))
    for folder, array in (("images", image), ("masks", (label == 1).astype(np.uint8))):
      (tmp_path / "liver" / folder).mkdir(parents=True, exist_ok=True)
      write_nifti(tmp_path / "liver" / folder / f"{name}.nii", Volume(array, AFFINE))
  write_png(tmp_path / "liver/images/d.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
  write_png(tmp_path / "liver/masks/d.png", np.ones((3, 4), np.uint8))
  file = tmp_path / "f.json"
  code = command.main(["condseg-verify", str(tmp_path / "liver"), "--format=folder",
                       "--modality=ct", f"--json={file}"])
  one, = json.loads(file.read_text())["findings"]
  assert code == 1 and one["name"] == "2-D" and one["file"].endswith("d.png")


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["."]])
def test_nothing_to_verify(arguments, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert command.main(["condseg-verify", *arguments]) == (1 if arguments else 2)
  assert len(capsys.readouterr().err.splitlines()) == 1


# --- prepared stores ----------------------------------------------------------------------------
def test_outliers_in_a_store(tmp_path):
  raw, names = tmp_path / "raw", ("spacing_outlier", "intensity_outlier")
  write(raw, [*(f"good_{i}" for i in range(6)), *names])
  for name in names:
    spoil(raw, name)
  prepare(read_msd(raw), tmp_path / "store", progress=False)
  findings, count = verify(tmp_path / "store", progress=False)
  assert count == 8 and {f.severity for f in findings} == {"warning"}
  assert {(f.name, f.file.rsplit("/", 1)[1]) for f in findings} == {(n, n) for n in names}
  assert len(findings) == len(names)


def test_a_leak_between_two_stores(tmp_path):
  root = write(tmp_path / "one", ["a", "b"])
  prepare(read_msd(root), tmp_path / "all" / "one", progress=False)
  prepare(read_msd(write(tmp_path / "two", ["c", "d", "e"], val=["d"])), tmp_path / "all" / "two",
          progress=False)
  # Images are drawn alike by number: b equals d.
  findings, count = verify(tmp_path / "all", progress=False)
  assert found(findings) == [("duplicate", "error")] and count == 5
  assert findings[0].file.endswith("two/cases/d")


@pytest.mark.parametrize("harm", ["chunk", "swapped", "record", "no record", "manifest", "stray"])
def test_a_damaged_store(harm, tmp_path):
  root, out = write(tmp_path / "raw", ["a", "b", "c"]), tmp_path / "out"
  prepare(read_msd(root), out, progress=False)
  folder = out / "cases" / "b"
  expected = "damaged"
  match harm:
    case "chunk":
      next(p for p in (folder / "image" / "c").rglob("*") if p.is_file()).unlink()
    case "swapped":
      shutil.rmtree(folder / "masks")
      shutil.copytree(out / "cases" / "c" / "image", tmp_path / "kept")
      shutil.rmtree(folder / "image")
      shutil.copytree(tmp_path / "kept", folder / "image")
      shutil.copytree(out / "cases" / "c" / "masks", folder / "masks")
    case "record":
      (folder / "case.json").write_text("{")
    case "no record":
      (folder / "case.json").unlink()
      expected = "unfinished"
    case "manifest":
      (out / "manifest.json").unlink()
      expected = "unfinished"
    case "stray":
      shutil.copytree(folder, out / "cases" / "copy")
      expected = "stray"
  findings, _ = verify(out, progress=False)
  assert [f.name for f in findings] == [expected]
  assert command.main(["condseg-verify", str(out)]) == (0 if harm == "stray" else 1)


def prepare_slowly(root, out):
  prepare(read_msd(root), out, (0.5, 0.5, 0.5), progress=False)


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_no_case_that_passes_and_is_incomplete(tmp_path):
  """Ten processes are killed at random moments; each goes on where the one before stopped."""
  root = write(tmp_path / "raw", [f"case_{i}" for i in range(40)])
  whole = prepare(read_msd(root), tmp_path / "whole", (0.5, 0.5, 0.5), progress=False)
  expected = {case.id: case for case in whole.cases}
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([__name__, "condseg_jax.datasets.prepare"])
  rng, out, killed, passed = random.Random(0), tmp_path / "out", 0, set()
  for _ in range(10):
    process = context.Process(target=prepare_slowly, args=(root, out))
    process.start()
    before = len(list(out.glob("cases/*/case.json"))) if out.exists() else 0
    limit = time.monotonic() + 60
    # The kill falls into work that is under way, whatever the machine's speed.
    while (process.is_alive() and time.monotonic() < limit and
           len(list(out.glob("cases/*/case.json"))) < before + 2):
      time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.join()
    killed += process.exitcode == -9
    process.close()
    if not (out / "cases").exists():
      continue
    findings, _ = verify(out, progress=False)
    faulty = {f.file for f in findings}
    sound = [p for p in (out / "cases").iterdir() if str(p) not in faulty]
    store = Store(whole.root.__class__(out), whole.modality, whole.spacing, whole.table, ())
    for folder in sound:
      case = expected[folder.name]
      assert json.loads((folder / "case.json").read_text())["sha256"] == case.sha256
      assert store.digest(case) == (case.image_sha256, case.sha256)
      passed.add(folder.name)
  assert killed >= 5 and passed
  assert prepare(read_msd(root), out, (0.5, 0.5, 0.5), progress=False).cases == whole.cases
  assert verify(out, progress=False) == ([], 40)
