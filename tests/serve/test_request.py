"""Valid queries and Accept headers, and the errors for invalid ones."""

import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import PredictRequest
from condseg_jax.serve.request import read_request

TABLE = ClassTable.create(["liver", "left kidney"], presets={"all": ["liver", "left kidney"]})


def parse(accept="*/*", **query):
  return read_request(list(query.items()), accept, TABLE, ("argmax", "softmax", "independent"))


def test_everything_has_a_default():
  assert parse() == PredictRequest((), "", "argmax", 0.5, "", "", False, "zip", False, ".nii.gz")


def test_all_parameters():
  request = parse(classes=" Liver , left kidney,", preset="all", fusion="independent",
                  threshold="0.25", study="1.2", series="1.2.3", output="dicom", store="1")
  assert request == PredictRequest(("Liver", "left kidney"), "all", "independent", 0.25, "1.2",
                                   "1.2.3", False, "dicom", True)


@pytest.mark.parametrize("accept, output", [
    ("*/*", "zip"), ("application/zip", "zip"), ("application/gzip", "label"),
    ("application/json", "statistics"), ("multipart/form-data", "page"),
    ("text/html, application/json;q=0.5, */*;q=0.1", "statistics"),
    ("application/json;q=0.1, application/gzip;q=0.9", "label"),
    ("text/html,application/xhtml+xml,*/*;q=0.8", "zip")])
def test_the_answer_follows_the_accept_header(accept, output):
  assert parse(accept).output == output
  assert parse(accept, output="label").output == "label"


@pytest.mark.parametrize("query, message", [
    ({"class": "liver"}, "one of classes"), ({"classes": "heart"}, "choose from: liver"),
    ({"preset": "none"}, "presets: all"), ({"fusion": "mean"}, "one of argmax"),
    ({"threshold": "1.5"}, r"in \[0, 1\], got '1.5'"), ({"threshold": "nan"}, r"\[0, 1\]"),
    ({"threshold": ""}, r"\[0, 1\]"), ({"output": "pdf"}, "one of zip"),
    ({"store": "1"}, "is no DICOM object"),
    ({"force": "yes"}, "one of 0, 1")])
def test_invalid_parameters(query, message):
  with pytest.raises(HttpError, match=message) as caught:
    parse(**query)
  assert caught.value.status == 400


def test_a_repeated_parameter():
  with pytest.raises(HttpError, match="twice"):
    read_request([("classes", "liver"), ("classes", "left kidney")], "*/*", TABLE, ())


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=1, application/zip;q=0", "*/*;q=no"])
def test_unsupported_media_types(accept):
  with pytest.raises(HttpError) as caught:
    parse(accept)
  assert caught.value.status == 406
