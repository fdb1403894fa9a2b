"""What a request may ask for; everything else is refused by name."""

import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import PredictRequest
from condseg_jax.serve.request import read_request

TABLE = ClassTable.create(["liver", "left kidney"], presets={"all": ["liver", "left kidney"]})


def order(accept="*/*", **query):
  return read_request(list(query.items()), accept, TABLE, ("argmax", "softmax", "independent"))


def test_everything_has_a_default():
  assert order() == PredictRequest((), "", "argmax", 0.5, "", False, "zip")


def test_all_parameters():
  asked = order(classes=" Liver , left kidney,", preset="all", fusion="independent",
                threshold="0.25", series="1.2.3", output="label")
  assert asked == PredictRequest(("Liver", "left kidney"), "all", "independent", 0.25, "1.2.3",
                                 False, "label")


@pytest.mark.parametrize("accept, output", [
    ("*/*", "zip"), ("application/zip", "zip"), ("application/gzip", "label"),
    ("application/json", "statistics"), ("multipart/form-data", "page"),
    ("text/html, application/json;q=0.5, */*;q=0.1", "statistics"),
    ("application/json;q=0.1, application/gzip;q=0.9", "label"),
    ("text/html,application/xhtml+xml,*/*;q=0.8", "zip")])
def test_the_answer_follows_the_accept_header(accept, output):
  assert order(accept).output == output
  assert order(accept, output="label").output == "label"


@pytest.mark.parametrize("query, told", [
    ({"class": "liver"}, "one of classes"), ({"classes": "heart"}, "known classes: liver"),
    ({"preset": "none"}, "presets: all"), ({"fusion": "mean"}, "one of argmax"),
    ({"threshold": "1.5"}, "from 0 to 1"), ({"threshold": "nan"}, "from 0 to 1"),
    ({"threshold": ""}, "from 0 to 1"), ({"output": "dicom"}, "one of zip")])
def test_what_makes_no_sense_is_refused(query, told):
  with pytest.raises(HttpError, match=told) as caught:
    order(**query)
  assert caught.value.status == 400


def test_a_parameter_twice():
  with pytest.raises(HttpError, match="twice"):
    read_request([("classes", "liver"), ("classes", "left kidney")], "*/*", TABLE, ())


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=1, application/zip;q=0", "*/*;q=no"])
def test_an_answer_that_there_is_not(accept):
  with pytest.raises(HttpError) as caught:
    order(accept)
  assert caught.value.status == 406
