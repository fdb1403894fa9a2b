"""What of the protocol needs no client of it: sessions that end, parameters, refusals."""

import json
import time

import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.serve.monai import infer
from condseg_jax.serve.monai import sessions
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import PredictRequest
from support.service import client
from support.service import Inside
from support.service import LIMITS
from support.service import network
from support.service import nifti

TABLE = ClassTable.create(["liver", "spleen"], presets={"two": ["liver", "spleen"]})


def request(model="segmentation", output="", **params):
  return infer.to_request(model, output, params, TABLE, ("argmax", "softmax", "independent"))


def test_parameters():
  assert request() == PredictRequest()
  assert request("two", "json") == PredictRequest(preset="two", output="statistics")
  assert request("two", classes="liver, spleen").classes == ("liver", "spleen")
  assert request("two", classes="liver").preset == ""
  told = request(classes=["spleen"], force=True, threshold=0.25, fusion="softmax", device="cuda")
  assert told == PredictRequest(classes=("spleen",), force=True, threshold=0.25, fusion="softmax")
  assert request(classes="", preset=None, result_extension=".nrrd").suffix == ".nrrd"


@pytest.mark.parametrize("model, output, params, status", [
    ("heart", "", {}, 404), ("segmentation", "pdf", {}, 400),
    ("two", "", {"classes": "heart"}, 400), ("two", "", {"classes": [1]}, 400),
    ("two", "", {"threshold": "x"}, 400),
    ("two", "", {"threshold": {}}, 400), ("two", "", {"fusion": "independent"}, 400),
    ("two", "", {"result_extension": "../x"}, 400), ("two", "", {"result_extension": [1]}, 400)])
def test_invalid_parameters(model, output, params, status):
  with pytest.raises(HttpError) as caught:
    request(model, output, **params)
  assert caught.value.status == status


@pytest.mark.parametrize("text", ["[]", "1", "{", "nan", "[" * 100_000])
def test_params_that_are_no_object(text):
  with pytest.raises(HttpError, match="not a JSON object"):
    infer.parse_params(text)
  assert infer.parse_params("") == infer.parse_params("{}") == {}


def test_sessions_are_few_and_end(tmp_path, monkeypatch):
  store = sessions.Sessions(tmp_path / "sessions")

  def start(seconds=0):
    (tmp_path / "body").write_bytes(b"x")
    return store.add(tmp_path / "body", seconds)[0]

  names = [start() for _ in range(sessions.MAX_SESSIONS)]
  store.get(names[0])  # so that the second is the one unused for longest
  names.append(start())
  assert len(list((tmp_path / "sessions").iterdir())) == sessions.MAX_SESSIONS
  with pytest.raises(HttpError, match="404"):
    store.image(names[1])
  store.link(names[0], tmp_path / "kept")
  store.remove(names[0])
  assert (tmp_path / "kept").read_bytes() == b"x"
  assert not (tmp_path / "sessions" / names[0]).exists()
  brief, now = start(10), time.time()
  monkeypatch.setattr(sessions.time, "time", lambda: now + 20)
  with pytest.raises(HttpError, match="has ended"):
    store.get(brief)
  store.get(names[2])
  monkeypatch.setattr(sessions.time, "time", lambda: now + 2 * sessions.SECONDS)
  with pytest.raises(HttpError):
    store.get("none")
  assert not list((tmp_path / "sessions").iterdir())


@pytest.fixture(scope="module")
def service():
  with client(Inside(network(), LIMITS)) as made:
    yield made


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/datastore/", 404), ("GET", "/datastore/image?image=a", 404),
    ("PUT", "/datastore/label?image=a", 404), ("POST", "/activelearning/first", 404),
    ("POST", "/activelearning/other", 404), ("POST", "/infer/segmentation?image=a", 404),
    ("POST", "/infer/segmentation", 400), ("POST", "/infer/segmentation?images=a", 400),
    ("POST", "/infer/segmentation?session_id=../x", 404), ("POST", "/infer/heart", 404),
    ("PUT", "/session/", 400), ("PUT", "/session/?expiry=soon", 400), ("GET", "/session/x", 404),
    ("DELETE", "/session/x", 404), ("DELETE", "/info/", 405), ("POST", "/train/", 501)])
def test_refusals_are_one_line(service, method, path, status):
  answer = service.request(method, path)
  assert answer.status_code == status, answer.text
  assert set(answer.json()) == {"error", "reason", "cure"}


def test_pages_of_other_sites_are_refused(service):
  for method, path in (("POST", "/infer/segmentation"), ("PUT", "/session/"),
                       ("DELETE", "/session/x"), ("PUT", "/datastore/label?image=a")):
    answer = service.request(method, path, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403


def test_the_form_of_infer(service):
  """Other fields, a second file or long params are refused; the order of the parts is free."""
  def infer_form(*parts):
    return service.post("/infer/two?output=json", files=list(parts))
  image, params = ("file", ("a.nii", nifti())), ("params", (None, json.dumps({"classes": "liver"})))
  for parts in ((image, params), (params, image)):
    assert list(infer_form(*parts).json()["label_names"]) == ["liver"]
  assert infer_form(image, ("label", ("b.nii", nifti()))).status_code == 400
  alone = infer_form(("label", ("b.nii", nifti())))  # must not be taken for the image
  assert alone.status_code == 400 and "'file'" in alone.json()["cure"]
  assert infer_form(image, ("other", (None, "x"))).status_code == 400
  assert infer_form(params, params, image).status_code == 400
  assert infer_form(("params", (None, " " * 70_000)), image).status_code == 413
