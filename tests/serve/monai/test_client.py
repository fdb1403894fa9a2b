"""The client of MONAI Label against the service, as 3D Slicer's module uses it."""

import gzip
import json

import httpx2
import numpy as np
import pytest
import SimpleITK as sitk

from condseg_jax.formats.nifti import read_names
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.formats.sitk import read_sitk
from condseg_jax.serve.monai.datastore import Datastore
from support import monai
from support.dicom_files import read_segments
from support.service import AFFINE
from support.service import Inside
from support.service import LIMITS
from support.service import listening
from support.service import network
from support.service import nifti
from support.service import series
from support.service import voxels

pytestmark = pytest.mark.filterwarnings("ignore:unclosed", "ignore:Implicitly cleaning up")
# Oblique, with a flip, and axes of other lengths: nothing that is right by accident.
TURN = np.array([[0.8, -0.6, 0, -31], [0.6, 0.8, 0, 12], [0, 0, -2, 5], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  (folder / "b.nii.gz").write_bytes(gzip.compress(nifti(voxels(1), TURN)))
  (folder / "a.nii").write_bytes(nifti())
  (folder / "scan.zip").write_bytes(series())
  (folder / "notes.txt").write_text("no image")
  return folder


@pytest.fixture(scope="module")
def address(predictor, images, tmp_path_factory):
  folder = tmp_path_factory.mktemp("requests")
  with listening(Inside(predictor, LIMITS), folder, datastore=Datastore(images)) as made:
    yield made
  assert {path.name for path in folder.iterdir()} <= {"sessions"}


@pytest.fixture
def client(address, tmp_path):
  return monai.client(address, tmp_path)


@pytest.fixture
def expected(predictor, tmp_path):
  def predict(content, **options):
    (tmp_path / "expected.nii").write_bytes(content)
    return predictor.predict(read_nifti(tmp_path / "expected.nii"), **options)
  return predict


def test_info(client, predictor):
  info = client.info()
  assert info["labels"] == ["liver", "spleen", "pancreas"]
  assert info["models"]["segmentation"]["labels"] == {"liver": 1, "spleen": 2, "pancreas": 3}
  assert info["models"]["two"]["labels"] == {"liver": 1, "spleen": 2}  # the preset
  assert {model["type"] for model in info["models"].values()} == {"segmentation"}
  assert set(info["strategies"]) == {"first", "random", "next"} and info["trainers"] == {}
  assert info["datastore"]["total"] == 3
  assert not client.auth_enabled()


def test_infer_a_file_as_slicer_does(client, expected, tmp_path):
  """NRRD comes back, on the grid of the image, with the values that /info/ names."""
  (tmp_path / "turned.nii").write_bytes(nifti(voxels(1), TURN))
  file, params = client.infer("segmentation", "", {"result_extension": ".nrrd"},
                              file=str(tmp_path / "turned.nii"))
  wanted = expected(nifti(voxels(1), TURN)).label
  volume = read_sitk(file)
  np.testing.assert_array_equal(volume.array, wanted.array)
  np.testing.assert_allclose(volume.affine, TURN, atol=1e-5)
  assert sitk.ReadImage(file).GetPixelID() == sitk.sitkUInt16  # as OHIF's plugin needs
  assert params["label_names"] == {"liver": 1, "spleen": 2, "pancreas": 3}
  for name, (value, *index) in params["centroids"].items():
    assert int(value) == params["label_names"][name]
    found = np.argwhere(wanted.array == int(value))
    np.testing.assert_allclose(np.float64(index), found.mean(0), atol=0.01)
  assert params["centroids"] and params["ignored"] == []


def test_infer_by_image_id_with_a_preset_or_classes(client, expected, images):
  content = gzip.decompress((images / "b.nii.gz").read_bytes())
  for model, params, options in (
      ("two", {}, {"preset": "two"}),
      ("segmentation", {"preset": "two", "threshold": 0.3}, {"preset": "two", "threshold": 0.3}),
      ("two", {"classes": ["pancreas", "liver"]}, {"classes": ["pancreas", "liver"]})):
    file, told = client.infer(model, "b", {**params, "device": "cuda"})
    volume = read_nifti(file)
    np.testing.assert_array_equal(volume.array, expected(content, **options).label.array)
    np.testing.assert_allclose(volume.affine, TURN, atol=1e-5)
    assert read_names(file) == told["label_names"]
    assert told["ignored"] == ["device"]


def test_a_session(client, expected, tmp_path):
  (tmp_path / "image.nii").write_bytes(nifti())
  made = client.create_session(str(tmp_path / "image.nii"))
  name = made["session_id"]
  assert client.get_session(name)["name"] == name and "/" not in json.dumps(made)
  for _ in range(2):  # without sending the image again
    file, _ = client.infer("segmentation", "", {}, session_id=name)
    np.testing.assert_array_equal(read_nifti(file).array, expected(nifti()).label.array)
  client.remove_session(name)
  with pytest.raises(Exception) as caught:
    client.infer("segmentation", "", {}, session_id=name)
  assert "404" in caught.value.msg and "send the image again" in caught.value.msg


def test_the_next_image_and_its_label(client, images, tmp_path):
  assert client.next_sample("first", {})["id"] == "a"
  assert client.next_sample("random", {})["id"] in {"a", "b", "scan"}
  assert client.next_sample("next", {})["id"] == "a"  # nothing is ranked
  ranked = {"images": [{"name": name} for name in ("scan", "gone", "a", "b")]}
  (images / "next.json").write_text(json.dumps(ranked))
  assert client.next_sample("next", {})["id"] == "scan"
  (images / "next.json").write_text("{")
  assert client.next_sample("next", {})["id"] == "a"
  label, _ = client.infer("segmentation", "a", {})
  content = read_nifti(label).array
  assert client.save_label("a", label, tag="original") == {"image": "a", "label": "a"}
  assert client.next_sample("first", {})["id"] == "a"  # nobody has checked it
  client.save_label("a", label, params={"label_info": []})
  assert client.next_sample("first", {})["id"] == "b"
  assert client.info()["datastore"] == {"total": 3, "completed": 1,
                                        "label_tags": {"final": 1, "original": 1}}
  assert set(client.datastore()["objects"]["a"]["labels"]) == {"final", "original"}
  np.testing.assert_array_equal(read_nifti(client.download_label("a", "final")).array, content)
  assert sorted(path.name for path in (images / "labels").rglob("*.nii.gz")) == ["a.nii.gz"] * 2
  with pytest.raises(Exception) as caught:
    client.next_sample("epistemic", {})
  assert caught.value.status_code == 404 and b"use one of first, random" in caught.value.response


def test_a_new_image(client, images, tmp_path):
  (tmp_path / "x.nii").write_bytes(nifti(voxels(2)))
  assert client.upload_image(str(tmp_path / "x.nii"), "new one") == {"image": "new one"}
  assert (images / "new one.nii").read_bytes() == nifti(voxels(2))
  with pytest.raises(Exception) as caught:
    client.upload_image(str(tmp_path / "x.nii"), "new one")
  assert "409" in caught.value.msg
  (images / "new one.nii").unlink()


def test_training_is_a_command(client):
  for call in (lambda: client.train_start("segmentation", {}), client.train_stop,
               client.train_status):
    with pytest.raises(Exception) as caught:
      call()
    assert "501" in caught.value.msg and "condseg-train" in caught.value.msg
  assert client.train_status(check_if_running=True) is False


def test_dicom_seg_of_a_series(address, expected, tmp_path):
  """The request of a viewer of DICOM; the Python client cannot ask for it."""
  answer = httpx2.post(f"{address}/infer/segmentation?image=scan&output=dicom_seg",
                       files={"params": (None, "{}")}, timeout=60)
  assert answer.headers["content-type"] == "application/dicom", answer.text
  (tmp_path / "seg.dcm").write_bytes(answer.content)
  wanted = expected(nifti())
  found = read_segments(tmp_path / "seg.dcm", wanted.label.geometry)
  np.testing.assert_allclose(wanted.label.affine, AFFINE, atol=1e-4)
  assert found
  for name, mask in found.items():
    np.testing.assert_array_equal(mask, wanted.label.array == wanted.names[name])


def test_numbers_alone(address, expected):
  answer = httpx2.post(f"{address}/infer/two?image=a&output=json", timeout=60)
  label = expected(nifti(), preset="two").label.array
  assert {name: entry["voxels"] for name, entry in answer.json()["statistics"]["classes"].items()} \
      == {"liver": (label == 1).sum(), "spleen": (label == 2).sum()}
