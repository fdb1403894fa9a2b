"""condseg-next on the cross-validated run of conftest: order, starts for annotators, and back."""

import json
import shutil

import numpy as np
import pytest

from condseg_jax.cli import next as command
from condseg_jax.cli import prepare
from condseg_jax.data.store import Store
from condseg_jax.formats.nifti import read_names
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from condseg_jax.predictor import Predictor
from support.dicom_files import write_series
from support.tiny import AFFINE
from support.tiny import case

IMAGES = "train/box/imagesTr"  # three of them


def start(run, root, *more):
  return command.main(["condseg-next", f"--workdir={run}", f"--images={root / IMAGES}", *more])


def test_order_masks_and_back(fold_run, fold_root, tmp_path, capsys, monkeypatch):
  out, listed = tmp_path / "todo", tmp_path / "next.json"
  arguments = ("--count=2", f"--out={out}", f"--json={listed}", "--members=1")
  assert start(fold_run, fold_root, *arguments) == 0
  rows = json.loads(listed.read_text())["images"]
  assert sorted(row["name"] for row in rows) == ["case_04", "case_05", "case_06"]
  assert rows[0]["gain"] == max(row["gain"] for row in rows) and rows[0]["class"] in ("ball", "box")
  printed = capsys.readouterr().out.splitlines()
  assert [line.split()[-1] for line in printed[1:3]] == [row["name"] for row in rows[:2]]
  chosen = [f"{row['name']}.nii.gz" for row in rows[:2]]
  assert sorted(path.name for path in (out / "masks").iterdir()) == sorted(chosen)
  for name in chosen:
    mask = read_nifti(out / "masks" / name)
    image = read_nifti(out / "images" / name)
    np.testing.assert_array_equal(image.array, read_nifti(fold_root / IMAGES / name).array)
    assert mask.array.shape == image.array.shape
    assert read_names(out / "masks" / name) == {"ball": 1, "box": 2}

  # What an annotator has corrected stays, and nothing is predicted twice.
  corrected = Volume((image.array > 60).astype(np.uint8), image.affine)
  write_nifti(out / "masks" / name, corrected, label=True)

  def refuse(*_, **__):
    raise AssertionError("predicted again")

  with monkeypatch.context() as patch:
    patch.setattr(Predictor, "predict", refuse)
    assert start(fold_run, fold_root, *arguments) == 0
  assert json.loads(listed.read_text())["images"] == rows
  np.testing.assert_array_equal(read_nifti(out / "masks" / name).array, corrected.array)

  assert prepare.main(["p", "--format=folder", "--modality=ct", f"--source={out}",
                       f"--out={tmp_path / 'store'}"]) == 0
  store = Store.open(tmp_path / "store")
  assert store.table.names == ("ball", "box") and len(store.cases) == 2
  one = next(one for one in store.cases if one.id == name.removesuffix(".nii.gz"))
  assert one.positives["ball"] == corrected.array.sum()

  assert start(fold_run, fold_root, f"--labelled={out / 'masks'}", f"--json={listed}",
               "--members=1") == 0
  assert [row["name"] for row in json.loads(listed.read_text())["images"]] == [rows[2]["name"]]


def test_a_dicom_series_is_written_as_nifti(fold_run, tmp_path):
  voxels = case(np.random.default_rng(5))[0].transpose(2, 1, 0)
  write_series(tmp_path / "scan", voxels, AFFINE[:, [2, 1, 0, 3]], order=[3, 7, 1, 0, 6, 2, 5, 4])
  (tmp_path / "list.txt").write_text("scan\n")
  assert command.main(["condseg-next", f"--workdir={fold_run}", f"--images={tmp_path / 'list.txt'}",
                       f"--out={tmp_path / 'todo'}", "--members=1"]) == 0
  image, mask = (read_nifti(tmp_path / "todo" / name / "scan.nii.gz")
                 for name in ("images", "masks"))
  np.testing.assert_array_equal(image.array, voxels)
  np.testing.assert_allclose(image.affine, mask.affine)


def test_an_image_that_cannot_be_read_does_not_end_it(fold_run, fold_root, tmp_path, capsys):
  folder = shutil.copytree(fold_root / IMAGES, tmp_path / "images")
  (folder / "case_05.nii.gz").write_bytes(b"not an image")
  assert command.main(["condseg-next", f"--workdir={fold_run}", f"--images={folder}",
                       "--members=1"]) == 1
  streams = capsys.readouterr()
  assert "case_05" in streams.err.splitlines()[-1] and "case_04" in streams.out


@pytest.mark.parametrize("flags, message", [
    (["--labelled=nowhere"], "is not a folder"), (["--labelled=IMAGES"], "without a mask"),
    (["--classes=heart"], "heart"), (["--count=0"], "count")])
def test_bad_input(fold_run, fold_root, capsys, flags, message):
  flags = [flag.replace("IMAGES", str(fold_root / IMAGES)) for flag in flags]
  assert start(fold_run, fold_root, *flags) == 2
  assert message in capsys.readouterr().err
