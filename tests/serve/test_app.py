"""The service as clients see it: every answer and every error, and no files left behind."""

import asyncio
import dataclasses
import errno
import gzip
import io
import json
import threading
import zipfile

import numpy as np
from PIL import Image
import pytest
from python_multipart.multipart import parse_options_header

from condseg_jax.formats.nifti import read_names
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.formats.picture import read_picture
from condseg_jax.serve.request import Limits
from support.dicom_files import fill_polygons
from support.dicom_files import read_segments
from support.service import bad_bodies
from support.service import client
from support.service import Held
from support.service import Inside
from support.service import LIMITS
from support.service import network
from support.service import nifti
from support.service import picture
from support.service import picture_network
from support.service import series
from support.service import voxels
from support.waiting import until


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture(scope="module")
def service(predictor, tmp_path_factory):
  folder = tmp_path_factory.mktemp("requests")
  with client(Inside(predictor, LIMITS), folder=folder) as made:
    yield made
  assert not list(folder.iterdir())


@pytest.fixture
def volume(tmp_path):
  (tmp_path / "a.nii").write_bytes(nifti())
  return read_nifti(tmp_path / "a.nii")


def read_label(tmp_path, content):
  path = tmp_path / "label.nii.gz"
  path.write_bytes(content)
  return read_nifti(path)


def told(response, status):
  """The one line of a refusal."""
  assert response.status_code == status, response.text
  assert response.headers["content-type"] == "application/json"
  assert response.text.endswith("}\n") and response.text.count("\n") == 1
  line = response.json()
  assert set(line) == {"error", "reason", "cure"} and all(line.values())
  return line


@pytest.mark.parametrize("content", [nifti(), gzip.compress(nifti()), series()],
                         ids=["nii", "nii.gz", "dicom"])
def test_a_zip_with_the_label_map_and_the_numbers(service, predictor, volume, tmp_path, content):
  response = service.post("/predict", content=content)
  assert response.status_code == 200 and response.headers["content-type"] == "application/zip"
  assert response.headers["cache-control"] == "no-store"
  archive = zipfile.ZipFile(io.BytesIO(response.content))
  assert archive.namelist() == ["label.nii.gz", "statistics.json"]
  label = read_label(tmp_path, archive.read("label.nii.gz"))
  expected = predictor.predict(volume)
  np.testing.assert_array_equal(label.array, expected.label.array)
  np.testing.assert_allclose(label.affine, volume.affine, atol=1e-4)
  assert read_names(tmp_path / "label.nii.gz") == dict(expected.names)
  statistics = json.loads(archive.read("statistics.json"))
  assert statistics["shape"] == list(voxels().shape) and statistics["spacing_mm"] == [1, 1, 2]
  for name, value in expected.names.items():
    count = int((expected.label.array == value).sum())  # of 1 x 1 x 2 mm
    entry = statistics["classes"][name]
    assert entry["value"] == value and entry["voxels"] == count
    assert entry["volume_ml"] == pytest.approx(count * 0.002)
    assert entry["touches_border"] == (count > 0) and 0 < entry["confidence"] < 1


def test_a_form_and_parameters(service, predictor, volume, tmp_path):
  response = service.post("/predict?output=label&preset=two&fusion=softmax&threshold=0.1",
                          files={"file": ("../../a.nii", nifti())})
  assert response.headers["content-type"] == "application/gzip"
  expected = predictor.predict(volume, preset="two", fusion="softmax", threshold=0.1)
  label = read_label(tmp_path, response.content)
  np.testing.assert_array_equal(label.array, expected.label.array)
  assert label.array.any()


def test_an_implausible_volume_is_refused_and_can_be_forced(service):
  air = nifti(np.zeros_like(voxels()))
  line = told(service.post("/predict", content=air), 422)
  assert "override with force=1" in line["cure"]
  answer = service.post("/predict?force=1&output=statistics", content=air)
  assert answer.status_code == 200 and answer.json()["findings"]


def test_numbers_alone_by_the_accept_header(service):
  response = service.post("/predict?classes=spleen", content=nifti(),
                          headers={"Accept": "application/json"})
  assert list(response.json()["classes"]) == ["spleen"]


def test_masks_that_overlap(service, predictor, volume, tmp_path):
  response = service.post("/predict?fusion=independent&threshold=0.4", content=nifti())
  archive = zipfile.ZipFile(io.BytesIO(response.content))
  expected = predictor.predict(volume, fusion="independent", threshold=0.4)
  statistics = json.loads(archive.read("statistics.json"))["classes"]
  for name, value in expected.names.items():
    mask = read_label(tmp_path, archive.read(f"mask_{name}_{value}.nii.gz")).array
    np.testing.assert_array_equal(mask, expected.masks[name])
    assert statistics[name]["voxels"] == mask.sum() > 0


def test_all_that_the_page_needs(service, predictor, volume):
  """Browsers take a form apart; here the multipart parser of the server does."""
  response = service.post("/predict?output=page", content=nifti())
  kind, options = parse_options_header(response.headers["content-type"])
  assert kind == b"multipart/form-data"
  edge = b"--" + options[b"boundary"]
  parts = {}
  for part in response.content.split(edge)[1:-1]:
    head, _, content = part.partition(b"\r\n\r\n")
    parts[head.split(b'"')[1].decode()] = content.removesuffix(b"\r\n")
  assert set(parts) == {"label.nii.gz", "statistics.json", "image.png", "labels.png", "layout.json"}
  assert json.loads(parts["layout.json"])["shape"] == [6, 10, 12]
  painted = np.asarray(Image.open(io.BytesIO(parts["labels.png"])))
  found = np.bincount(predictor.predict(volume).label.array.ravel())[1:]
  np.testing.assert_array_equal(np.bincount(painted[..., 0].ravel())[1:], found)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_pictures_for_a_2d_network(tmp_path, kind):
  predictor = picture_network()
  (tmp_path / f"a.{kind.lower()}").write_bytes(picture(kind=kind))
  expected = predictor.predict(read_picture(tmp_path / f"a.{kind.lower()}"), fusion="independent",
                               threshold=0.4)
  with client(Inside(predictor, LIMITS)) as service:
    assert service.get("/classes").json()["axes"] == 2
    answer = service.post("/predict?fusion=independent&threshold=0.4", content=picture(kind=kind))
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["label.png", "mask_car_1.png", "mask_road_2.png",
                                  "statistics.json"]
    archive.extractall(tmp_path)
    np.testing.assert_array_equal(read_picture(tmp_path / "label.png").array, expected.label.array)
    for name, value in expected.names.items():
      mask = read_picture(tmp_path / f"mask_{name}_{value}.png").array
      np.testing.assert_array_equal(mask, expected.masks[name])
    road = json.loads(archive.read("statistics.json"))["classes"]["road"]
    assert road["area_px"] == road["voxels"] == expected.masks["road"].sum() > 0
    np.testing.assert_allclose(road["centroid_voxel"],
                               np.argwhere(expected.masks["road"]).mean(axis=0), atol=0.01)
    label = service.post("/predict?output=label", content=picture(kind=kind))
    assert label.headers["content-type"] == "image/png"
    assert 'filename="label.png"' in label.headers["content-disposition"]


def test_a_network_for_images_of_other_axes(service):
  line = told(service.post("/predict", content=picture()), 415)
  assert line["reason"] == "is a picture" and "3-D" in line["cure"]
  with client(Inside(picture_network(), LIMITS)) as of_pictures:
    for content in (nifti(), gzip.compress(nifti()), series(), b"text"):
      assert "2-D" in told(of_pictures.post("/predict", content=content), 415)["cure"]
    told(of_pictures.post("/predict", content=picture()[:200]), 422)


def test_a_large_picture_is_refused_by_its_header():
  with client(Inside(picture_network(), dataclasses.replace(LIMITS, memory=1 << 20))) as service:
    line = told(service.post("/predict", content=picture((300, 400))), 413)
    assert "300 x 400 voxels" in line["reason"]


@pytest.mark.parametrize("fusion", ["argmax", "independent"])
def test_dicom_objects_of_a_dicom_series(service, predictor, volume, tmp_path, fusion):
  response = service.post(f"/predict?output=dicom&threshold=0.4&fusion={fusion}", content=series())
  archive = zipfile.ZipFile(io.BytesIO(response.content))
  assert archive.namelist() == ["seg.dcm", "rtstruct.dcm"]
  archive.extractall(tmp_path)
  expected = predictor.predict(volume, fusion=fusion, threshold=0.4)
  masks = (expected.masks if fusion == "independent" else
           {name: expected.label.array == value for name, value in expected.names.items()})
  read = read_segments(tmp_path / "seg.dcm", volume.geometry)
  filled = fill_polygons(tmp_path / "rtstruct.dcm", volume.geometry)
  assert read.keys() == filled.keys() == {name for name, mask in masks.items() if mask.any()}
  for name, mask in read.items():
    np.testing.assert_array_equal(mask, masks[name])
  one = service.post(f"/predict?threshold=0.4&fusion={fusion}", content=series(),
                     headers={"Accept": "application/dicom"})
  assert one.content[128:132] == b"DICM"
  assert one.headers["content-disposition"] == 'attachment; filename="seg.dcm"'
  line = told(service.post("/predict?output=dicom_seg", content=nifti()), 400)
  assert line["error"] == "output" and "needs a DICOM series" in line["reason"]


@pytest.mark.parametrize("name", bad_bodies())
def test_bad_bodies(service, name):
  content, status = bad_bodies()[name]
  told(service.post("/predict", content=content), status)


def test_bad_parameters(service):
  assert "liver" in told(service.post("/predict?classes=heart", content=nifti()), 400)["cure"]
  told(service.post("/predict?threshold=2", content=nifti()), 400)
  told(service.post("/predict", content=nifti(), headers={"Accept": "text/html"}), 406)
  told(service.post("/predict", files={"file": ("a.nii", nifti())}, data={"classes": "liver"}), 400)


def test_other_addresses(service):
  told(service.get("/etc/passwd"), 404)
  told(service.get("/predict"), 405)
  told(service.post("/classes"), 405)


def test_a_name_that_is_not_of_the_service(service):
  for path in ("/", "/health", "/classes", "/page.js"):
    line = told(service.get(path, headers={"Host": "evil.example:8000"}), 421)
    assert "'evil.example:8000' is not a name of this service" in line["reason"]
  told(service.post("/predict", content=nifti(), headers={"Host": "evil.example"}), 421)


def test_a_page_of_another_site_cannot_predict(service):
  for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
    line = told(service.post("/predict", content=nifti(), headers=headers), 403)
    assert line["error"] == "Origin"
  own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
  assert service.post("/predict", content=nifti(), headers=own).status_code == 200


def test_nothing_is_redirected(service):
  for path in ("/health/", "/classes/", "/page.js/"):
    told(service.get(path, follow_redirects=False), 404)


def test_classes_and_health(service, predictor):
  classes = service.get("/classes").json()
  assert [c["name"] for c in classes["classes"]] == ["liver", "spleen", "pancreas"]
  assert [c["value"] for c in classes["classes"]] == [1, 2, 3]
  assert tuple(classes["classes"][1]["color"]) == predictor.table.colors[1]
  assert classes["presets"] == {"two": ["liver", "spleen"]}
  response = service.get("/health")
  assert response.status_code == 200
  assert response.json() == {"live": True, "ready": True, "running": 0, "waiting": 0, "places": 9}


@pytest.mark.parametrize("path, kind", [("/", "text/html"), ("/page.css", "text/css"),
                                        ("/page.js", "text/javascript"),
                                        ("/viewer.js", "text/javascript")])
def test_the_page_asks_for_nothing_from_elsewhere(service, path, kind):
  response = service.get(path)
  assert response.status_code == 200 and response.headers["content-type"].startswith(kind)
  assert "default-src 'self'" in response.headers["content-security-policy"]
  assert "//" not in response.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")


def test_a_full_queue(predictor):
  held = Held(predictor, LIMITS)
  with client(held, Limits(body=1 << 20, waiting=2)) as service:
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(
        service.post("/predict", content=nifti()))) for _ in range(3)]
    for thread in threads:
      thread.start()
    until(lambda: service.get("/health").json()["waiting"] == 2)
    assert service.get("/health").json()["running"] == 1
    rejected = service.post("/predict", content=nifti())
    told(rejected, 429)
    assert int(rejected.headers["retry-after"]) >= 1
    held.go.set()
    for thread in threads:
      thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert service.get("/health").json()["waiting"] == 0
    assert service.post("/predict", content=nifti()).status_code == 200


def test_how_far_a_request_is(predictor):
  held = Held(predictor, LIMITS)
  tickets = [f"0123456789abcdef-{number}" for number in range(3)]
  with client(held, LIMITS) as service:
    def state(number):
      return service.get(f"/queue/{tickets[number]}").json()

    def send(number):
      return threading.Thread(target=service.post, args=(f"/predict?ticket={tickets[number]}",),
                              kwargs={"content": nifti()})

    threads = [send(number) for number in range(3)]
    for number, thread in enumerate(threads):
      assert state(number) == {"state": ""}
      thread.start()
      until(lambda number=number: state(number)["state"])
    assert [state(number) for number in range(3)] == [
        {"state": "running", "done": None}, {"state": "waiting", "ahead": 1},
        {"state": "waiting", "ahead": 2}]
    held.progress = 0.25
    assert state(0) == {"state": "running", "done": 0.25}
    held.go.set()
    for thread in threads:
      thread.join()
    assert state(2) == {"state": ""}
    assert "0123456789abcdef" not in service.get("/metrics").text
    told(service.post("/predict?ticket=short", content=nifti()), 400)


def test_an_internal_error_reveals_nothing(predictor):
  broken = dataclasses.replace(predictor, variables={})
  with client(Inside(broken, LIMITS)) as service:
    line = told(service.post("/predict", content=nifti()), 500)
    assert "Error" not in str(line) and "/" not in str(line)
    told(service.post("/predict", content=b"text"), 415)


@pytest.mark.parametrize("place", ["condseg_jax.serve.upload.Path.open",
                                   "condseg_jax.serve.archive.Path.mkdir",
                                   "condseg_jax.serve.handler.files.write_label"])
def test_a_full_disk(service, monkeypatch, place):
  def full(*_args, **_options):
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/secret")

  content = series()
  monkeypatch.setattr(place, full)
  line = told(service.post("/predict", content=content), 507)
  assert "No space left" in line["reason"] and "secret" not in str(line)


def test_not_ready(predictor):
  loading = Inside(predictor, LIMITS)
  loading.ready, loading.table = False, None

  async def never():
    await asyncio.Event().wait()

  loading.start = never
  with client(loading) as service:
    assert service.get("/health").status_code == 503
    assert service.get("/health").json()["ready"] is False
    for response in (service.post("/predict", content=nifti()), service.get("/classes")):
      told(response, 503)
      assert response.headers["retry-after"]


def test_a_series_of_another_modality_is_refused_as_by_the_command(service):
  line = told(service.post("/predict", content=series(modality="PT")), 422)
  assert "has modality PT, the model was trained on MR" in line["reason"]
  assert service.post("/predict?force=1", content=series(modality="PT")).status_code == 200
