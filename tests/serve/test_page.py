"""The page in a browser: upload, view, download; it makes no third-party requests."""

import base64
import dataclasses
import gzip
import io
import re
import threading

import numpy as np
from PIL import Image
import pytest
import requests

from condseg_jax.formats.nifti import read_nifti
from condseg_jax.geometry import Volume
from condseg_jax.serve.tokens import add_token
from condseg_jax.serve.tokens import Tokens
from support import browser
from support.dicom_files import write_series
from support.service import AFFINE
from support.service import Held
from support.service import Inside
from support.service import LIMITS
from support.service import listening
from support.service import network
from support.service import nifti
from support.service import picture
from support.service import picture_network
from support.service import voxels
from support.waiting import until

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")]


@pytest.fixture(scope="module")
def predictor():
  return network()


@pytest.fixture(scope="module")
def address(predictor, tmp_path_factory):
  with listening(Inside(predictor, LIMITS), tmp_path_factory.mktemp("requests")) as made:
    yield made


@pytest.fixture
def page(address, tmp_path_factory):
  with browser.browser(tmp_path_factory.mktemp("profile"), local=True) as made:
    made.open(f"{address}/")
    made.wait("document.querySelectorAll('#classes input').length == 3")
    yield made


def segment(page, selector, *paths):
  page.choose(selector, *paths)
  page.wait("!document.getElementById('go').disabled")
  page.run("document.getElementById('go').click()")
  page.wait("document.getElementById('progress').hidden && !(document.getElementById('error')"
             ".hidden && document.getElementById('result').hidden)")


def error(page):
  return page.run("document.getElementById('error').textContent")


def rows(page):
  """Class → voxels in the table of the page."""
  cells = page.run("[...document.querySelectorAll('#rows tr')].map("
                   "row => [...row.cells].map(cell => cell.textContent))")
  return {name: int(count.replace(",", "")) for name, _, count in cells}


def canvases(page):
  """What the three views show, RGB."""
  urls = page.run("[...document.querySelectorAll('canvas')].map(c => c.toDataURL())")
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))[..., :3]
          .astype(int) for url in urls]


def coloured(picture):
  return np.ptp(picture, axis=-1) > 20


def test_a_file_is_uploaded_and_viewed(page, address, predictor, tmp_path):
  (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(nifti()))
  segment(page, "#file", tmp_path / "scan.nii.gz")
  assert error(page) == ""
  expected = predictor.predict(Volume(voxels(), AFFINE))
  counts = {name: int(mask.sum()) for name, mask in expected.masks.items()}
  assert rows(page) == counts
  pictures = canvases(page)
  # 12 x 10 x 6 voxels of 1 x 1 x 2 mm, seen along each axis
  assert [round(p.shape[1] / p.shape[0], 1) for p in pictures] == [1.2, 2.0, round(10 / 6, 1)]
  for shown in pictures:
    assert shown.std() > 10 and coloured(shown).any(), "blank, or without overlay"

  path = page.download("#downloads a", tmp_path)
  assert path.name == "label.nii.gz"
  np.testing.assert_array_equal(read_nifti(path).array, expected.label.array)

  assert not page.complaints
  asked = [a for a in page.requests.values() if not a.startswith((f"{address}/", "data:", "blob:"))]
  assert not asked, "asked elsewhere"
  assert not re.search(r"/tmp|/home|site-packages", page.run("document.body.innerText"))


def test_slices_classes_and_overlay_can_be_changed(page, tmp_path):
  (tmp_path / "scan.nii").write_bytes(nifti())
  segment(page, "#file", tmp_path / "scan.nii")
  before = canvases(page)
  page.run("""(() => { const slider = document.querySelector('.view input');
    slider.value = slider.value == 0 ? 1 : 0; slider.dispatchEvent(new Event('input')); })()""")
  moved = canvases(page)
  assert (moved[0] != before[0]).any(), "another axial slice"
  page.run("[...document.querySelectorAll('#rows input')].forEach(box => box.click())")
  assert not any(coloured(picture).any() for picture in canvases(page))
  page.run("document.querySelector('#rows input').click()")
  page.run("""(() => { const slider = document.getElementById('opacity');
    slider.value = 0; slider.dispatchEvent(new Event('input')); })()""")
  assert not any(coloured(picture).any() for picture in canvases(page))
  assert not page.complaints


def test_a_folder_of_dicom_is_zipped_in_the_page(page, predictor, tmp_path):
  paths = write_series(tmp_path / "series", voxels(), AFFINE, modality="MR")
  # The protocol chooses files, not folders; the page sees the same.
  page.run("Object.assign(document.getElementById('folder'),"
           "{webkitdirectory: false, multiple: true}).id")
  page.run("document.querySelector('#classes input').click()")
  segment(page, "#folder", *paths)
  assert error(page) == ""
  expected = predictor.predict(Volume(voxels(), AFFINE), ["liver"])
  assert rows(page) == {"liver": int(expected.masks["liver"].sum())}


def test_errors_are_shown(page, tmp_path):
  (tmp_path / "a.nii").write_text("no image")
  segment(page, "#file", tmp_path / "a.nii")
  assert error(page).startswith("body: is neither NIfTI")
  assert page.run("document.getElementById('result').hidden")


def test_a_picture_and_its_2d_network(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pictures")
  (folder / "street.png").write_bytes(picture())
  predictor = picture_network()
  with listening(Inside(predictor, LIMITS), folder) as address, (
      browser.browser(tmp_path_factory.mktemp("profile"), local=True)) as page:
    page.open(f"{address}/")
    page.wait("document.querySelectorAll('#classes input').length == 2")
    assert "PNG" in page.run("document.getElementById('formats').textContent")
    segment(page, "#file", folder / "street.png")
    assert error(page) == ""
    shown, = canvases(page)
    assert shown.shape[1] / shown.shape[0] == 1.5
    page.run("""(() => { const slider = document.getElementById('opacity');
      slider.value = 0; slider.dispatchEvent(new Event('input')); })()""")
    shown, = canvases(page)
    scale = shown.shape[0] // 20
    middles = shown[scale // 2::scale, scale // 2::scale]
    expected = np.asarray(Image.open(io.BytesIO(picture()))).astype(int)
    assert np.abs(middles - expected).mean() < 12, "the colours of the picture, smoothed"
    found = predictor.predict(Volume(expected.astype(np.uint8), np.eye(3)))
    assert {name: int(mask.sum()) for name, mask in found.masks.items()} == {
        name: int(count.replace(",", "")) for name, count in page.run(
            "[...document.querySelectorAll('#rows tr')].map("
            "row => [...row.cells].map(cell => cell.textContent))")}
    assert page.download("#downloads a", folder).name == "label.png"
    assert not page.complaints


def test_the_queue_and_the_rating_are_shown(predictor, tmp_path_factory):
  """A second image waits for a first; structures of an ensemble have a predicted Dice."""
  folder = tmp_path_factory.mktemp("queue")
  (folder / "a.nii").write_bytes(nifti())
  quality = {name: {"score": [0.0, 1.0], "dice": [0.3, 0.9], "shift": -0.2, "cases": 20}
             for name in predictor.table.names}
  held = Held(dataclasses.replace(predictor, quality=quality), LIMITS)
  with listening(held, folder) as address, browser.browser(
      tmp_path_factory.mktemp("profile"), local=True) as page:
    page.open(f"{address}/")
    page.wait("document.querySelectorAll('#classes input').length == 3")
    thread = threading.Thread(target=requests.post, args=(f"{address}/predict",),
                              kwargs={"data": nifti()})
    thread.start()
    until(held.begun.is_set)
    page.choose("#file", folder / "a.nii")
    page.wait("!document.getElementById('go').disabled")
    page.run("document.getElementById('go').click()")
    page.wait("document.getElementById('step').textContent == 'Waiting for another image'")
    held.go.set()
    thread.join()
    page.wait("!document.getElementById('result').hidden")
    assert page.run("document.querySelectorAll('#rows .light').length") > 0
    assert "Predicted Dice" in page.run("document.getElementById('columns').textContent")


def test_light_and_dark(page):
  grounds = []
  for dark in (False, True):
    page.look(dark=dark)
    grounds.append(page.picture().mean())
  assert grounds[0] > 200 and grounds[1] < 60


def test_with_a_token_the_browser_asks_once(predictor, tmp_path_factory):
  """User and password are name and token; what the page then requests has them, too."""
  folder = tmp_path_factory.mktemp("tokens")
  token = add_token(folder / "tokens", "ward")
  with listening(Inside(predictor, LIMITS), folder, tokens=Tokens(folder / "tokens")) as address, (
      browser.browser(tmp_path_factory.mktemp("profile"), local=True)) as page:
    page.open(address.replace("//", f"//ward:{token}@") + "/")  # instead of the browser's dialog
    page.open(f"{address}/")
    page.wait("document.querySelectorAll('#classes input').length == 3")
    (folder / "a.nii").write_bytes(nifti())
    segment(page, "#file", folder / "a.nii")
    assert error(page) == "" and rows(page)
