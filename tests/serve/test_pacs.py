"""Requests that name series on the DICOMweb server of the service, a real Orthanc."""

import numpy as np
import pytest

from condseg_jax.dicomweb.server import Server
from condseg_jax.serve.request import Limits
from support import orthanc
from support.dicom_files import read_segments
from support.service import AFFINE
from support.service import client
from support.service import Inside
from support.service import LIMITS
from support.service import network
from support.service import nifti
from support.service import voxels
from support.waiting import free_port

pytest.importorskip("dicomweb_client", reason="the extra pacs is not installed")

STUDY, SERIES = "1.2.826.8.1", "1.2.826.8.1.1"
TWO = "1.2.826.8.2"  # a study of two series


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  with orthanc.running(tmp_path_factory.mktemp("orthanc")) as running:
    folder = tmp_path_factory.mktemp("study")
    running.upload(orthanc.write_study(folder, STUDY, SERIES))
    running.upload(orthanc.write_study(folder, TWO, f"{TWO}.1", f"{TWO}.2"))
    yield running


@pytest.fixture(scope="module")
def service(server, predictor):
  with client(Inside(predictor, LIMITS), server=Server(server.web)) as made:
    yield made


@pytest.fixture(scope="module")
def expected(predictor):
  from condseg_jax.geometry import Volume
  return predictor.predict(Volume(voxels(), AFFINE))


def test_a_series_by_its_study_is_answered_and_stored(server, service, expected, tmp_path):
  answer = service.post(f"/predict?study={STUDY}&output=dicom&store=1")
  assert answer.status_code == 200, answer.text
  assert len(server.series("RTSTRUCT", STUDY)) == 1
  (found,) = server.series("SEG", STUDY)
  (path,) = server.download(found["0020000E"], tmp_path / "seg")
  for name, mask in read_segments(path, expected.label.geometry).items():
    np.testing.assert_array_equal(mask, expected.label.array == expected.names[name])
  again = service.post(f"/predict?study={STUDY}&series={SERIES}&output=dicom_seg&store=1")
  assert again.status_code == 200  # the objects in the study are not taken for images
  assert len(server.series("SEG", STUDY)) == 1  # an equal object has the same identifiers


def test_a_viewer_names_a_series(service, expected):
  """As OHIF's plugin does, with the SeriesInstanceUID for image."""
  answer = service.post(f"/infer/segmentation?image={SERIES}&output=json")
  counts = {name: entry["voxels"] for name, entry in answer.json()["statistics"]["classes"].items()}
  assert counts == {name: (expected.label.array == value).sum()
                    for name, value in expected.names.items()}


@pytest.mark.parametrize("query, status, message", [
    (f"study={TWO}", 422, f"{TWO}.1"), ("study=1.9.9", 404, "no images"),
    ("study=http://evil.example", 400, "not a DICOM identifier"),
    (f"study={STUDY}/..", 400, "not a"),
    (f"study={STUDY}&series=../x", 400, "not a DICOM identifier"),
    (f"study={STUDY}&store=1", 400, "no DICOM object"), (f"study={STUDY}&store=2", 400, "0, 1")])
def test_refusals(server, service, query, status, message):
  answer = service.post(f"/predict?{query}")
  assert answer.status_code == status and message in answer.text, answer.text
  assert server.web not in answer.text


def test_a_body_as_well(service):
  assert service.post(f"/predict?study={STUDY}", content=nifti()).status_code == 400
  assert service.post("/infer/segmentation?image=a").status_code == 404


def test_too_large_a_series(server, predictor):
  for limits in (Limits(body=1 << 20, members=3), Limits(body=500)):
    with client(Inside(predictor, limits), limits, server=Server(server.web)) as service:
      answer = service.post(f"/predict?study={STUDY}")
      assert answer.status_code == 413 and "smaller series" in answer.text


def test_without_a_server_or_when_it_is_away(predictor):
  with client(Inside(predictor, LIMITS)) as service:
    assert service.post(f"/predict?study={STUDY}").status_code == 404
    assert service.post(f"/infer/segmentation?image={SERIES}").status_code == 404
    early = service.post("/predict?store=1&output=dicom_seg", content=b"no series")
    assert early.status_code == 404 and "--dicomweb" in early.json()["cure"]  # before it is read
  away = f"http://127.0.0.1:{free_port()}/dicom-web"
  with client(Inside(predictor, LIMITS), server=Server(away)) as service:
    answer = service.post(f"/predict?study={STUDY}")
    assert answer.status_code == 502 and "127.0.0.1" not in answer.text
