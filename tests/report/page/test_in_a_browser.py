"""The page in a headless offline Chromium: it renders, and makes no requests.

Every test ends with a look at what was asked for and at what the browser complained of.
"""

import json
import tarfile

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.evaluate.scores import summarise
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.report.page import viewer
from condseg_jax.report.page.case import draw_case
from condseg_jax.report.page.case import structure_sizes
from condseg_jax.report.page.write import write_page
from support import browser
from support.pages import scored
from support.pages import segmented
from support.pages import TABLE

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium is installed")
CANVAS = ".stage canvas"


@pytest.fixture
def bundle():
  try:
    viewer.fetch()
  except InputError as error:
    pytest.skip(f"the viewer cannot be had: {error}")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
  with browser.browser(tmp_path_factory.mktemp("profile")) as window:
    yield window


@pytest.fixture
def page(window, tmp_path):
  """Writes a page and opens it; finally checks that only the page itself was requested."""
  path = tmp_path / "report.html"
  window.requests.clear()
  window.complaints.clear()

  def opened(cases, table=TABLE, summary=None, **changes):
    write_page(path, cases, table, title="a run", facts={}, summary=summary)
    window.open(path, **changes)
    return window
  yield opened
  asked = {url for url in window.requests.values() if not url.startswith(("data:", "about:"))}
  assert asked == {path.as_uri()}
  assert not window.complaints


def evaluation():
  found = [scored(f"case {n}", n, shift) for n, shift in enumerate((1, 4, 0), 1)]
  rows = [row for _, more in found for row in more]
  return [case for case, _ in found], summarise(rows, TABLE.names)


def show(window, number):
  window.run(f"document.querySelector('#case-{number} .open').click()")
  window.wait(f"document.querySelector('#case-{number}').dataset.viewer === 'drawn'")


def choose(window, name, value):
  window.run(f"""(() => {{
      const control = document.querySelector('.viewer [name={name}]');
      control.value = '{value}';
      control.dispatchEvent(new Event('change'));
      control.dispatchEvent(new Event('input'));}})()""")


def share(pixels, colour, tolerance=60):
  """Share of pixels with the hue of a colour, within `tolerance` at full brightness."""
  pixels = pixels.astype(float)
  bright = pixels.max(-1) > 60
  scaled = 255 * pixels / np.maximum(pixels.max(-1, keepdims=True), 1)
  wanted = 255 * np.array(colour) / max(colour)
  return float((bright & (np.abs(scaled - wanted).max(-1) < tolerance)).mean())


def until(window, condition):
  """Waits for the expected canvas; drawing may lag behind the commands."""
  for _ in range(100):
    pixels = window.picture(CANVAS)
    if condition(pixels):
      return pixels
    window.run("new Promise((done) => setTimeout(done, 100))")
  raise AssertionError("the canvas never looked as expected")


def test_the_licences_are_those_of_the_package(bundle):
  """Of NiiVue, and of the packages that its script contains."""
  with tarfile.open(viewer.path()) as package:
    facts = json.load(package.extractfile("package/package.json"))
  licences = viewer.licenses()
  assert facts["license"] == "BSD-2-Clause" and "BSD 2-Clause License" in licences
  assert all(name in licences for name in (facts["name"], *facts["dependencies"]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_slices_lie_side_by_side_at_one_height(page, width):
  image, label = np.zeros((2, 30, 60), np.float32), np.zeros((2, 30, 60), np.uint8)
  label[1, 5:20, 5:30] = 1
  affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
  found = Volume(label, affine)
  thin = draw_case("thin", Volume(image, affine), found, TABLE,
                   structure_sizes(found, {"ball": 1, "box": 2}), modality="mr")
  window = page([segmented(), thin], width=width)
  for number in (1, 2):
    boxes = window.run(f"""[...document.querySelectorAll('#case-{number} svg[role=img]')]
        .map((s) => s.getBoundingClientRect()).map((b) => [b.x, b.y, b.width, b.height])""")
    x, y, widths, heights = np.array(boxes).T
    gaps = np.diff(x) - widths[:2]
    assert len(boxes) == 3 and (gaps > 0).all() and x[0] >= 0 and x[2] + widths[2] <= width
    for values in (y, widths, heights, gaps):
      np.testing.assert_allclose(values, values[0], atol=0.1)


@pytest.mark.slow
def test_the_viewer_draws_image_and_structures(page, bundle):
  window = page([segmented(), segmented("case 2", 1)])
  assert window.run("document.querySelectorAll('canvas').length") == 0, "none unless asked for"
  show(window, 1)
  pixels = until(window, lambda p: share(p, (230, 40, 40), 110) > 0.001)
  assert (pixels.max(-1) > 40).mean() > 0.1 and len(np.unique(pixels)) > 50, "not blank"
  assert share(pixels, (40, 80, 230), 110) > 0.001
  where = window.run("document.querySelector('.where').textContent")
  assert "superior" in where and "intensity" in where
  # Hidden structures are hidden in the slices and in the viewer.
  window.run("document.querySelector('[name=structure][value=\"0\"]').click()")
  until(window, lambda p: share(p, (230, 40, 40), 110) == 0)
  hidden = "getComputedStyle(document.querySelector('#case-1 .slice path.k0')).display"
  assert window.run(hidden) == "none"
  # In 3-D without the image only the other structure remains on black.
  choose(window, "layout", "render")
  window.run("document.querySelector('.viewer [name=image]').click()")
  pixels = until(window, lambda p: 0.3 > (p.max(-1) > 40).mean() > 0.001)
  assert share(pixels, (40, 80, 230), 110) > 0.5 * (pixels.max(-1) > 60).mean()


@pytest.mark.slow
def test_one_viewer_moves_from_case_to_case(page, bundle):
  window = page([segmented(), segmented("case 2", 1)])
  for number in (1, 2, 1):
    show(window, number)
    assert window.run("document.querySelectorAll('canvas').length") == 1
    assert window.run("document.querySelector('canvas').closest('article').id") == f"case-{number}"
    assert window.run("document.querySelectorAll('[data-viewer]').length") == 1
    until(window, lambda p: share(p, (230, 40, 40), 110) > 0.001)
  window.run("document.querySelector('.viewer [name=close]').click()")
  assert window.run("document.querySelectorAll('canvas').length") == 0
  assert window.run("document.querySelectorAll('.open:not([hidden])').length") == 2


def test_a_structure_is_shown_where_it_is(page, bundle):
  window = page([segmented()])
  for row, name in enumerate(TABLE.names):
    window.run(f"document.querySelectorAll('.go')[{row}].click()")
    window.wait(f"document.querySelector('.where')?.textContent.endsWith('· {name}')")


@pytest.mark.slow
def test_errors_of_an_evaluation(page, bundle):
  cases, summary = evaluation()
  window = page(cases, summary=summary)
  show(window, 2)
  assert window.run("[...document.querySelector('[name=labels]').options].map((o) => o.value)") == [
      "prediction", "truth", "errors"]
  choose(window, "labels", "errors")
  until(window, lambda p: share(p, (230, 159, 0), 70) > 0.001 and share(p, (86, 180, 233), 70) > 0)
  # And in the slices.
  shown = "getComputedStyle(document.querySelector('#case-2 .slice .errors')).display"
  assert window.run(shown) == "none"
  window.run("document.querySelector('[name=show][value=errors]').click()")
  assert window.run(shown) != "none"


def test_tables_sort_by_every_column(page):
  cases, summary = evaluation()
  window = page(cases, summary=summary)

  def column():
    return window.run("[...document.querySelectorAll('.cases tbody tr')].map((row) => "
                      "row.cells[0].textContent)")
  order = [f"case {n}" for n in np.argsort([case.dice for case in cases]) + 1]
  for expected in (order, order[::-1]):
    window.run("document.querySelectorAll('.cases th button')[2].click()")
    assert column() == expected
  window.run("document.querySelectorAll('.cases th button')[0].click()")
  assert column() == ["case 1", "case 2", "case 3"]


def test_the_policy_stops_what_would_ask_the_network(page, window):
  window = page([segmented()])
  stopped = window.run("""new Promise((done) => {
      const seen = [];
      document.addEventListener('securitypolicyviolation', (event) => {
        seen.push(event.effectiveDirective);
        if (seen.length === 3) done(seen.sort());
      });
      new Image().src = 'https://example.invalid/a.png';
      fetch('https://example.invalid/b').catch(() => 0);
      const script = document.createElement('script');
      script.textContent = 'window.stolen = 1';
      document.head.append(script);})""")
  assert stopped == ["connect-src", "img-src", "script-src-elem"]
  assert window.run("window.stolen === undefined")
  for number, url in list(window.requests.items()):
    if "example" in url:  # an image request is recorded before it is blocked
      assert number in window.blocked
      del window.requests[number]
  assert len(window.complaints) >= 3
  assert all("Content Security Policy" in text for text in window.complaints)
  window.complaints.clear()


def test_light_and_dark(page):
  light = page([segmented()]).picture()
  dark = page([segmented()], dark=True).picture()
  assert light[5, 5].min() > 230 and dark[5, 5].max() < 40


def test_without_scripts_the_page_is_still_a_report(page, window):
  window.call("Emulation.setScriptExecutionDisabled", value=True)
  try:
    page([segmented()])
    text = window.picture("article")
  finally:
    window.call("Emulation.setScriptExecutionDisabled", value=False)
  assert share(text, (230, 40, 40), 110) > 0.001, "slices with their outlines"


@pytest.mark.slow
def test_a_real_ct(page, bundle, real_data):
  image = files.read_volume(real_data / "ct_sample" / "ct.nii.gz")
  label = files.read_label(real_data / "ct_sample" / "ct_labels.nii.gz").array
  table = ClassTable.create(["liver", "spleen"], colors={"liver": (230, 40, 40),
                                                         "spleen": (40, 80, 230)})
  found = Volume((label == 5) + 2 * (label == 1).astype(np.uint8), image.affine)
  measures = structure_sizes(found, {"liver": 1, "spleen": 2})
  case = draw_case("case 1", image, found, table, measures, modality="ct")
  window = page([case], table)
  show(window, 1)
  pixels = until(window, lambda p: share(p, (230, 40, 40), 120) > 0.01)
  assert share(pixels, (40, 80, 230), 120) > 0.001
  # Radiological: the liver is on the left of the picture, the spleen on the right.
  choose(window, "layout", "axial")
  pixels = until(window, lambda p: share(p, (230, 40, 40), 120) > 0.02)
  half = pixels.shape[1] // 2
  assert share(pixels[:, :half], (230, 40, 40), 120) > share(pixels[:, half:], (230, 40, 40), 120)
