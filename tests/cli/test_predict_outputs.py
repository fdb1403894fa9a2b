"""What condseg-predict writes besides the masks, and which images it refuses."""

import dataclasses
import functools
import hashlib
import json
import logging

import numpy as np
import pydicom
import pytest

import condseg_jax
from condseg_jax.cli import predict
from condseg_jax.config import Config
from condseg_jax.errors import InputError
from condseg_jax.formats import dicom_source
from condseg_jax.formats.nifti import read_colors
from condseg_jax.formats.nifti import read_names
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from condseg_jax.infer.sliding_window import WindowFunctions
from condseg_jax.model_io.record import ModelRecord
from support.dicom_files import fill_polygons
from support.dicom_files import read_segments
from support.dicom_files import write_series
from support.tiny import AFFINE
from support.tiny import case

ANY = "--threshold=0"  # after two training steps all probabilities are low


@pytest.fixture
def series(tmp_path):
  voxels = case(np.random.default_rng(5))[0].transpose(2, 1, 0)
  write_series(tmp_path / "scan", voxels, AFFINE[:, [2, 1, 0, 3]], order=[3, 7, 1, 0, 6, 2, 5, 4])
  return tmp_path / "scan"


def start(run, path, output, *more):
  return predict.main(["condseg-predict", f"--workdir={run}", f"--input={path}",
                       f"--output={output}", "--nopicture", *more])


def names_in(folder):
  return {path.name for path in folder.glob("[!.]*")} - {"run.json"}


def load_known(run):
  """A network that finds a ball where the image is bright and a box where it is brighter."""
  levels = (0.0, 0.5)
  halves = WindowFunctions(lambda variables, image, ids: image[..., 0],
                           lambda variables, image, ids: np.stack(
                               [image > levels[i] for i in np.maximum(ids, 0)]).astype(np.float32),
                           False, (1,))
  return dataclasses.replace(condseg_jax.load(run), functions=halves)


@pytest.fixture
def known(run, monkeypatch):
  network = load_known(run)
  monkeypatch.setattr("condseg_jax.loading.load", lambda *_, **__: network)


def test_a_dicom_series_gets_a_segmentation_of_its_own_kind(run, series, tmp_path):
  out = tmp_path / "out"
  assert start(run, series, out, ANY, "--dicom=seg,rtstruct") == 0
  assert names_in(out) == {"scan.nii.gz", "scan_seg.dcm", "scan_rtstruct.dcm",
                           "scan_statistics.json"}
  label = read_nifti(out / "scan.nii.gz")
  table = condseg_jax.load(run).table
  assert read_names(out / "scan.nii.gz") == {"ball": 1, "box": 2}
  assert read_colors(out / "scan.nii.gz") == dict(zip(table.names, table.colors, strict=True))
  structures = json.loads((out / "scan_statistics.json").read_text())["classes"]
  assert label.array.any() and set(structures) == {"ball", "box"}
  for found in (read_segments(out / "scan_seg.dcm", label.geometry),
                fill_polygons(out / "scan_rtstruct.dcm", label.geometry)):
    for name, value in (("ball", 1), ("box", 2)):
      mask = label.array == value
      assert structures[name]["voxels"] == mask.sum()
      assert (name in found) == mask.any()
      np.testing.assert_array_equal(found.get(name, np.zeros_like(mask)), mask)
  segmentation = pydicom.dcmread(out / "scan_seg.dcm")
  assert segmentation.FrameOfReferenceUID == "1.2.840.2"
  algorithm = segmentation.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
  assert "step 2" in algorithm.AlgorithmParameters


def test_what_is_written_by_default_and_on_request(run, series, tmp_path):
  assert start(run, series, tmp_path / "a", ANY) == 0
  assert names_in(tmp_path / "a") == {"scan.nii.gz", "scan_seg.dcm", "scan_statistics.json"}
  assert start(run, series, tmp_path / "b", ANY, "--dicom=") == 0
  assert names_in(tmp_path / "b") == {"scan.nii.gz", "scan_statistics.json"}
  assert start(run, series, tmp_path / "c", "--dicom=seg,pdf") == 2
  image = tmp_path / "volume.nii.gz"
  write_nifti(image, Volume(case(np.random.default_rng(5))[0], AFFINE))
  assert start(run, image, tmp_path / "d", ANY) == 0
  assert names_in(tmp_path / "d") == {"volume.nii.gz", "volume_statistics.json"}


def test_a_folder_of_several_series_is_a_batch(run, tmp_path, capsys):
  """Each series is segmented as with --series; a bad one is reported and does not stop others."""
  study, affine = tmp_path / "study", AFFINE[:, [2, 1, 0, 3]]
  uids = {"1.2.840.1": ("3", "AX T1/fs"), "1.2.840.2": ("3", "AX T1/fs"), "1.2.840.3": ("", "")}
  for place, (uid, (number, description)) in enumerate(uids.items()):
    voxels = case(np.random.default_rng(place))[0].transpose(2, 1, 0)
    tags = {k: {"0020|0011": number, "0008|103e": description} for k in range(8)}
    write_series(study, voxels, affine, uid=uid, tags=tags,
                 order=[10 * k + place for k in range(8)])
  assert start(run, study, tmp_path / "all", ANY) == 0
  stems = [f"study_{name}{hashlib.sha256(uid.encode()).hexdigest()[:8]}" for uid, name in zip(
      uids, ("3_AX_T1_fs_", "3_AX_T1_fs_", ""), strict=True)]
  assert names_in(tmp_path / "all") == {f"{stem}{end}" for stem in stems for end in (
      ".nii.gz", "_seg.dcm", "_statistics.json")}
  assert set(json.loads((tmp_path / "all" / "run.json").read_text())["cases"]) == set(stems)
  for uid, stem in zip(uids, stems, strict=True):
    assert start(run, study, tmp_path / uid, ANY, f"--series={uid}") == 0
    alone, together = (read_nifti(path) for path in (tmp_path / uid / "study.nii.gz",
                                                     tmp_path / "all" / f"{stem}.nii.gz"))
    np.testing.assert_array_equal(together.array, alone.array)
    segmentation = pydicom.dcmread(tmp_path / "all" / f"{stem}_seg.dcm")
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == uid

  next(path for path in study.iterdir() if path.name == "slice_041.dcm").unlink()
  capsys.readouterr()
  assert start(run, study, tmp_path / "bad", ANY) == 1
  assert {f"{stems[0]}.nii.gz", f"{stems[2]}.nii.gz"} < names_in(tmp_path / "bad")
  failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
  assert len(failures) == 1 and failures[0].startswith(f"failed: {stems[1]}: ")


def test_overlapping_masks_go_into_one_segmentation(run, known, series, tmp_path):
  assert start(run, series, tmp_path / "out", "--fusion=independent", "--noclean") == 0
  assert names_in(tmp_path / "out") == {"scan_ball.nii.gz", "scan_box.nii.gz", "scan_seg.dcm",
                                        "scan_statistics.json"}
  masks = {name: read_nifti(tmp_path / "out" / f"scan_{name}.nii.gz") for name in ("ball", "box")}
  found = read_segments(tmp_path / "out" / "scan_seg.dcm", masks["box"].geometry)
  for name, mask in masks.items():
    np.testing.assert_array_equal(found[name], mask.array)
  assert 0 < found["box"].mean() < found["ball"].mean() < 1
  assert not (found["box"] & ~found["ball"]).any()


def test_uncertainty_is_written_beside_the_mask(run, known, series, tmp_path):
  """In bits: 1 where both classes are certain; as certain, with overlap, nothing is undecided."""
  command = functools.partial(start, run, series)
  for name, more, where in (("argmax", (), "box"), ("independent", ("--fusion=independent",), "")):
    out = tmp_path / name
    assert command(out, "--noclean", "--dicom=", "--uncertainty", *more) == 0
    bits = read_nifti(out / "scan_uncertainty.nii.gz")
    assert command(out / "masks", "--noclean", "--dicom=", "--fusion=independent") == 0
    box = read_nifti(out / "masks" / "scan_box.nii.gz")
    np.testing.assert_array_equal(bits.affine, box.affine)
    assert bits.array.dtype == np.float32 and box.array.any()
    np.testing.assert_allclose(bits.array, box.array * (where == "box"), atol=1e-3)
    files = json.loads((out / "run.json").read_text())["cases"]["scan"]["files"]
    assert "scan_uncertainty.nii.gz" in files


def test_the_predicted_dice_is_in_the_dicom_objects(run, series, tmp_path, monkeypatch):
  network = load_known(run)
  knowing = {"ball": {"score": [0.0, 1.0], "dice": [0.5, 0.5], "shift": -0.125, "cases": 9}}
  monkeypatch.setattr("condseg_jax.loading.load", lambda *_, **__: dataclasses.replace(
      network, quality=knowing))
  out = tmp_path / "out"
  assert start(run, series, out, "--noclean", "--fusion=independent", "--dicom=seg,rtstruct") == 0
  remark = "predicted Dice 0.50, 90 % bound 0.38"
  segments = pydicom.dcmread(out / "scan_seg.dcm").SegmentSequence
  assert {s.SegmentLabel: s.get("SegmentDescription") for s in segments} == {
      "ball": remark, "box": None}
  regions = pydicom.dcmread(out / "scan_rtstruct.dcm").StructureSetROISequence
  assert {r.ROIName: r.get("ROIDescription") for r in regions} == {"ball": remark, "box": None}


def test_a_segmentation_that_was_not_asked_for_and_cannot_be_made_costs_no_mask(
    run, series, tmp_path, monkeypatch, caplog, capsys):
  def refused(*_, **__):
    raise InputError("slice", "has no identifier", "anonymise with new ones")

  monkeypatch.setattr(dicom_source, "read_source", refused)
  log = logging.getLogger("condseg_jax")
  monkeypatch.setattr(log, "propagate", True)
  assert start(run, series, tmp_path / "a", ANY) == 0
  assert names_in(tmp_path / "a") == {"scan.nii.gz", "scan_statistics.json"}
  assert "no DICOM object is written" in caplog.text
  assert start(run, series, tmp_path / "b", ANY, "--dicom=seg") == 1
  assert "has no identifier" in capsys.readouterr().err


def test_without_the_extra(run, series, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(dicom_source.importlib.util, "find_spec", lambda name: None)
  assert start(run, series, tmp_path / "a", ANY) == 0
  assert "condseg-jax[dicom]" in capsys.readouterr().err
  assert names_in(tmp_path / "a") == {"scan.nii.gz", "scan_statistics.json"}
  assert start(run, series, tmp_path / "b", ANY, "--dicom=seg") == 1
  assert "needs pydicom and highdicom" in capsys.readouterr().err


# --- image check --------------------------------------------------------------------------------
def test_the_checkpoint_knows_its_training_set(run):
  training = condseg_jax.load(run).training
  assert training["native_spacing"] == {key: [2.0, 1.0, 1.0] for key in ("min", "median", "max")}
  assert training["native_field"]["max"] == [16.0, 20.0, 18.0]
  assert training["cases"] < 8, "cases held out are not trained on"


def test_an_older_checkpoint_knows_less(run):
  predictor = condseg_jax.load(run)
  record = ModelRecord(Config(), predictor.table, predictor.plan, predictor.training)
  tree = record.to_json()
  del tree["training"]
  assert ModelRecord.from_json(tree).training == {}


def test_another_kind_of_image_is_refused_unless_forced(run, tmp_path, capsys):
  image = case(np.random.default_rng(5))[0]
  write_nifti(tmp_path / "mr.nii.gz", Volume((image - image.min()).astype(np.int16), AFFINE))
  assert start(run, tmp_path / "mr.nii.gz", tmp_path / "out") == 1
  error = capsys.readouterr().err
  assert "mr.nii.gz: no value is negative" in error and "override with --force" in error
  assert not (tmp_path / "out" / "mr.nii.gz").exists()
  assert start(run, tmp_path / "mr.nii.gz", tmp_path / "out", "--force") == 0
  assert "warning: " in capsys.readouterr().err
  findings = json.loads((tmp_path / "out" / "mr_statistics.json").read_text())["findings"]
  assert len(findings) == 1 and "no value is negative" in findings[0]


def test_an_unusual_image_is_flagged_and_segmented(run, tmp_path, capsys):
  coarse = AFFINE @ np.diag([3.0, 1, 1, 1])
  write_nifti(tmp_path / "a.nii.gz", Volume(case(np.random.default_rng(5))[0], coarse))
  assert start(run, tmp_path / "a.nii.gz", tmp_path / "out") == 0
  assert "voxels of 6 mm along SI, trained on 2 to 2" in capsys.readouterr().err
  assert (tmp_path / "out" / "a.nii.gz").exists()


def test_a_series_says_what_made_it(run, tmp_path, capsys):
  voxels = case(np.random.default_rng(5))[0].transpose(2, 1, 0)
  write_series(tmp_path / "mr", voxels, AFFINE[:, [2, 1, 0, 3]],
               tags={k: {"0008|0060": "MR"} for k in range(8)})
  assert start(run, tmp_path / "mr", tmp_path / "out") == 1
  assert "has modality MR" in capsys.readouterr().err
