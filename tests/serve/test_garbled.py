"""Fuzzed bodies: the response is a 4xx, or the answer to a body that the file readers accept."""

import gzip
import logging

from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from condseg_jax.formats.files import read_volume
from support.service import client
from support.service import Inside
from support.service import LIMITS
from support.service import network
from support.service import nifti
from support.service import series

# Numbers of a garbled header overflow; only the outcome matters.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

WHOLE = {"nii": nifti(), "nii.gz": gzip.compress(nifti(), mtime=0), "zip": series()}


@pytest.fixture(scope="module")
def service():
  with client(Inside(network(), LIMITS)) as made:
    yield made


@st.composite
def garbled(draw):
  """A good body after some damage, and its kind."""
  kind = draw(st.sampled_from(sorted(WHOLE)))
  body = bytearray(WHOLE[kind])
  for _ in range(draw(st.integers(1, 4))):
    where = draw(st.integers(0, len(body) - 1) if draw(st.booleans()) else
                 st.integers(0, min(len(body) - 1, 400)))
    damage = draw(st.sampled_from(["cut", "set", "insert", "remove", "repeat"]))
    some = draw(st.binary(min_size=1, max_size=8))
    if damage == "cut":
      del body[where + 1:]
    elif damage == "set":
      body[where:where + len(some)] = some
    elif damage == "insert":
      body[where:where] = some
    elif damage == "remove":
      del body[where:where + len(some)]
    else:
      body[where:where] = body[max(0, where - 100):where]
    if not body:
      break
  return kind, bytes(body)


def rejected_or_read(service, caplog, body, kind, folder):
  caplog.clear()
  response = service.post("/predict?output=statistics", content=body)
  if response.status_code == 200:
    path = folder / f"a.{kind}"
    path.write_bytes(body)
    if kind != "zip":  # whose directory can be damaged where it does not matter
      read_volume(path)
  else:
    assert 400 <= response.status_code < 500, response.text
    assert set(response.json()) == {"error", "reason", "cure"}
  unexpected = [r for r in caplog.records if r.name == "condseg_jax" and r.levelno > logging.INFO]
  assert not unexpected, "a reader failed unexpectedly"


# Few, since tools/fuzz attacks the same routes for longer.
LASTING = settings(deadline=None, max_examples=12,
                   suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@LASTING
@given(garbled())
def test_good_bodies_after_damage(service, caplog, tmp_path, damaged):
  kind, body = damaged
  rejected_or_read(service, caplog, body, kind, tmp_path)


@pytest.mark.slow
@LASTING
@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"PK\x03\x04",
                                                  nifti()[:348], nifti()[:352]]))
def test_noise_behind_the_beginning_of_every_kind(service, caplog, tmp_path, noise, start):
  rejected_or_read(service, caplog, start + noise, "nii", tmp_path)


@pytest.mark.slow
@LASTING
@given(st.binary(max_size=3000), st.binary(max_size=80))
def test_noise_in_a_form(service, noise, boundary):
  head = b"--" + boundary + b'\r\nContent-Disposition: form-data; filename="a"\r\n\r\n'
  kind = "multipart/form-data; boundary=\"" + boundary.hex()[:60] + "\""
  response = service.post("/predict", content=head.replace(boundary, boundary.hex()[:60].encode())
                          + noise, headers={"Content-Type": kind})
  assert 400 <= response.status_code < 500, response.text
