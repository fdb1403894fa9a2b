"""The command against a real Orthanc: series are fetched, and results stored and found again."""

import json

import numpy as np
import pydicom
import pytest

from condseg_jax.cli.predict import main
from condseg_jax.dicomweb.server import Found
from condseg_jax.dicomweb.server import Server
from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats.nifti import read_nifti
from support import orthanc
from support.dicom_files import fill_polygons
from support.dicom_files import read_segments
from support.service import AFFINE
from support.service import network
from support.service import voxels
from support.waiting import free_port

pytest.importorskip("dicomweb_client", reason="the extra pacs is not installed")

STUDY, SERIES = "1.2.826.7.1", ("1.2.826.7.1.1", "1.2.826.7.1.2")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  with orthanc.running(tmp_path_factory.mktemp("orthanc")) as running:
    folder = tmp_path_factory.mktemp("study")
    running.upload(orthanc.write_study(folder, STUDY, SERIES[0]))
    running.upload(orthanc.write_study(folder, STUDY, SERIES[1], array=voxels(1, (9, 8, 7))))
    yield running


@pytest.fixture
def predict(monkeypatch, tmp_path):
  net = network()
  monkeypatch.setattr("condseg_jax.loading.load", lambda *_, **__: net)

  def run(source, *flags):
    return main(["condseg-predict", "--workdir=any", f"--input={source}", "--nopicture",
                 f"--output={tmp_path / 'out'}", "--threshold=0.4", *flags])
  return run


def test_a_series_comes_back_as_it_was_sent(server, tmp_path):
  client = Server(server.web)
  assert [found.uid for found in sorted(client.image_series(STUDY))] == list(SERIES)
  found = Found(STUDY, SERIES[1], "MR", 7)
  assert client.image_series(series=SERIES[1]) == [found]
  assert client.fetch(found, tmp_path / "series") == 7
  volume = dicom.read_series(tmp_path / "series")
  np.testing.assert_array_equal(volume.array, voxels(1, (9, 8, 7)))
  np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
  with pytest.raises(InputError, match="sends 7 of 8 instances"):
    client.fetch(found._replace(instances=8), tmp_path / "more")


def test_limits_of_a_transfer(server, tmp_path):
  client, found = Server(server.web), Found(STUDY, SERIES[0], "MR", 6)
  with pytest.raises(InputError, match="more than 3 instances"):
    client.fetch(found, tmp_path / "a", max_files=3)
  with pytest.raises(InputError, match="choose a smaller series"):
    client.fetch(found, tmp_path / "b", max_bytes=1000)
  assert client.fetch(found, tmp_path / "c", stopped=lambda: True) == 1


def test_round_trip(server, predict, tmp_path, capsys):
  """The objects are found by QIDO, refer to the slices, and are not taken for images."""
  source = f"dicomweb+{server.web}?StudyInstanceUID={STUDY}"
  out = tmp_path / "out"
  for _ in range(2):  # the second time the study has results, and they are the same
    assert predict(source, "--send", "--dicom=seg,rtstruct") == 0
    assert "stored 2 objects" in capsys.readouterr().err
  assert len(server.series("SEG", STUDY)) == len(server.series("RTSTRUCT", STUDY)) == 2
  for uid in SERIES:
    label = read_nifti(out / f"{uid}.nii.gz")
    assert label.array.any()
    (slices,) = [server.download(uid, tmp_path / f"slices {uid}")]
    instances = {pydicom.dcmread(path).SOPInstanceUID for path in slices}
    for kind, read in (("SEG", read_segments), ("RTSTRUCT", fill_polygons)):
      (path,) = [path for found in server.series(kind, STUDY)
                 for path in server.download(found["0020000E"], tmp_path / kind)
                 if uid + "." in str(pydicom.dcmread(path))]
      masks = read(path, label.geometry)
      assert masks
      for name, mask in masks.items():
        value = ("liver", "spleen", "pancreas").index(name) + 1
        np.testing.assert_array_equal(mask, label.array == value)
      dataset = pydicom.dcmread(path)
      assert dataset.StudyInstanceUID == STUDY and dataset.PatientName == "Doe^Jane"
      referenced = {one.value for one in dataset.iterall()
                    if one.keyword == "ReferencedSOPInstanceUID"} - {STUDY}
      assert referenced and referenced <= instances
  record = json.loads((out / "run.json").read_text())["cases"][SERIES[0]]
  assert record["input"]["file"] == f"{server.web}/studies/{STUDY}/series/{SERIES[0]}"


def test_one_series_and_continue(server, predict, tmp_path, capsys):
  source = f"dicomweb+{server.web}?StudyInstanceUID={STUDY}&SeriesInstanceUID={SERIES[1]}"
  assert predict(source) == 0
  assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {f"{SERIES[1]}.nii.gz"}
  assert predict(source, "--continue") == 0
  assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize("end, code, message", [
    ("?StudyInstanceUID=1.9", 1, "has no images of study 1.9"),
    (f"?StudyInstanceUID={STUDY}&SeriesInstanceUID=1.9", 1, "has no images of series 1.9"),
    ("/nowhere?StudyInstanceUID=1.9", 1, "answers with status 404"), ("", 2, "name a study")])
def test_errors_are_one_line(server, predict, capsys, end, code, message):
  assert predict(f"dicomweb+{server.web}{end}") == code
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and message in error


def test_no_server(predict, capsys):
  assert predict(f"dicomweb+http://127.0.0.1:{free_port()}/w?StudyInstanceUID=1") == 1
  assert "cannot be reached" in capsys.readouterr().err


def test_send_needs_a_server_and_an_object(server, predict, tmp_path, capsys):
  assert predict(tmp_path, "--send") == 2
  assert predict(f"dicomweb+{server.web}?StudyInstanceUID={STUDY}", "--send", "--dicom=") == 2
  assert "needs a DICOM object" in capsys.readouterr().err
