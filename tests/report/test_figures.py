"""Overlays: orientation, proportions, and the choice of slices and cases."""

import itertools
import os

import numpy as np
from PIL import Image
import pytest

from condseg_jax.errors import InputError
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.report import display
from condseg_jax.report import figures

NAMES, COLORS = ("liver", "spleen"), ((230, 40, 40), (40, 80, 230))
UNLABELLED = 255


def scored(case, *dices):
  return [CaseScore(case, name, {"dice": dice})
          for name, dice in zip(("liver", "spleen"), dices, strict=False)]


def capture(monkeypatch):
  """Collects the figures instead of saving them."""
  saved = []
  monkeypatch.setattr(figures, "_save", lambda path, figure: saved.append(figure))
  return saved


def draw(tmp_path, image, prediction, truth, spacing, **kwargs):
  path = tmp_path / "case.png"
  figures.overlay_figure(path, image, prediction, truth, NAMES, COLORS, spacing, "a case", **kwargs)
  return np.asarray(Image.open(path).convert("RGB")).astype(int)


def volume(shape=(8, 12, 10)):
  truth = np.zeros(shape, np.uint8)
  truth[5:7, 2:6, 1:4] = 1
  truth[1:3, 7:10, 6:9] = 2
  return np.random.default_rng(0).normal(size=shape).astype(np.float32), truth


def is_red(pixels):
  return (pixels[..., 0] > 140) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)


def test_median_and_worst():
  rows = scored("a", 0.9, 0.8) + scored("b", 0.2, np.nan) + scored("c", 0.5, 0.7)
  assert figures.pick_median_and_worst(rows) == ("c", "b")
  assert figures.pick_median_and_worst(rows[::-1]) == ("c", "b")


def test_median_of_an_even_number_is_a_case_and_ties_go_by_id():
  rows = scored("b", 0.5) + scored("a", 0.5) + scored("c", 0.9) + scored("d", 0.9)
  assert figures.pick_median_and_worst(rows) == ("b", "a")


def test_cases_without_a_score_are_never_picked():
  assert figures.pick_median_and_worst(scored("a", np.nan) + scored("b", 0.4)) == ("b", "b")
  with pytest.raises(ValueError, match="no case has a Dice"):
    figures.pick_median_and_worst(scored("a", np.nan))


def test_slices_show_small_classes_too():
  truth = np.zeros((20, 30, 30), np.uint8)
  truth[2, 5:25, 5:25] = 1
  truth[3:12, 6:25, 5:25] = 1  # a little less in every other slice
  truth[9:11, 1:3, 1:3] = 2  # 100 times smaller, but no slice without it is chosen
  assert display.telling_indices(truth, truth)[0] == 9  # the first with both at their largest


def test_slices_follow_the_prediction_where_the_truth_is_empty_and_else_the_centre():
  prediction = np.zeros((9, 9, 9), np.uint8)
  empty = np.full_like(prediction, UNLABELLED)
  prediction[7, 1, 2] = 1
  assert display.telling_indices(prediction, empty) == (7, 1, 2)
  assert display.telling_indices(np.zeros_like(empty), empty) == (4, 4, 4)


def test_views_are_the_way_up_that_their_letters_say(monkeypatch, tmp_path):
  """A structure at the superior, anterior, right end lies at the S, A and R edges."""
  drawn = []
  monkeypatch.setattr(figures, "_draw_panel", lambda axes, panel, palette: drawn.append(panel))
  truth = np.zeros((6, 8, 10), np.uint8)
  truth[-1, 0, 0] = 1  # axes run towards S, P, L
  figures.overlay_figure(tmp_path / "x.png", truth.astype(np.float32), truth, truth, NAMES, COLORS,
                         (3.0, 1.0, 2.0))
  for panel in drawn:
    left, right, top, bottom = panel.letters
    (y, x), (h, w) = np.argwhere(panel.labels == 1)[0], panel.labels.shape
    end = {left: x == 0, right: x == w - 1, top: y == 0, bottom: y == h - 1}
    for letter in set("SAR") & set(end):
      assert end[letter], (panel.letters, letter)
  assert [panel.letters for panel in drawn[::2]] == [
      ("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]


def test_millimetres_are_as_long_in_every_panel(monkeypatch, tmp_path):
  saved = capture(monkeypatch)
  image, truth = volume()
  spacing = (4.0, 1.0, 1.5)
  figures.overlay_figure(tmp_path / "x.png", image, truth, truth, NAMES, COLORS, spacing)
  (figure,) = saved
  inches = figure.get_size_inches()
  d, h, w = np.array(image.shape) * spacing
  sizes = [axes.get_position().size * inches for axes in figure.axes]
  expected = np.repeat([(w, h), (w, d), (h, d)], 2, axis=0)
  ratio = np.array(sizes) / expected
  np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
  boxes = [axes.get_position() for axes in figure.axes]
  assert all(0 <= b.x0 and b.x1 <= 1 and 0 <= b.y0 and b.y1 <= 1 for b in boxes)


@pytest.mark.parametrize("shape", [(5, 64, 64), (64, 5, 64), (64, 64, 1)])
def test_texts_of_thin_volumes_do_not_overlap(monkeypatch, tmp_path, shape):
  """Row titles, headings, and the letters in panels that may be a few pixels high or wide."""
  saved = capture(monkeypatch)
  truth = np.zeros(shape, np.uint8)
  figures.overlay_figure(tmp_path / "x.png", truth.astype(np.float32), truth, truth, NAMES, COLORS,
                         (5.0, 5.0, 5.0), "a case")
  (figure,) = saved
  texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
  boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
  assert {f"axial\n{shape[0] // 2 + 1} / {shape[0]}", "truth"} <= {name for name, _ in boxes}
  for (a, box), (b, other) in itertools.combinations(boxes, 2):
    assert not box.overlaps(other), (a, b)
  width, height = figure.bbox.size
  assert all(0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height
             for _, box in boxes)


def test_prediction_is_left_and_truth_right(tmp_path):
  image, truth = volume()
  none = np.zeros_like(truth)
  pixels = draw(tmp_path, image * 0, none, np.where(truth == 1, 1, 0), (2, 1, 1), window=(-1, 100))
  half, legend = pixels.shape[1] // 2, int(pixels.shape[0] * 0.96)
  red = is_red(pixels[:legend])
  assert red[:, half:].any() and not red[:, :half].any()


def test_unlabelled_voxels_are_drawn(tmp_path):
  image, truth = volume()
  window = (-1, 100)
  plain = draw(tmp_path, image * 0, truth, truth, (2, 1, 1), window=window)
  grey = truth.copy()
  grey[:, :2] = UNLABELLED
  marked = draw(tmp_path, image * 0, truth, grey, (2, 1, 1), window=window)
  half, end = plain.shape[1] // 2, int(plain.shape[0] * 0.9)
  changed = (plain != marked).any(-1)[:end]
  assert changed[:, half:].mean() > 0.05 and not changed[:, :half].any()


@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 30), (20, 30, 1)])
def test_images_are_shown_beside_prediction_and_truth(tmp_path, monkeypatch, shape):
  image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  labels = np.zeros(shape[:2], np.uint8)
  labels[5:15, 5:20] = 1
  labels[0] = UNLABELLED
  assert draw(tmp_path, image, np.where(labels == 1, 1, 0), labels, (1, 1)).size
  saved = capture(monkeypatch)
  for truth, n in ((labels, 3), (None, 2)):
    figures.overlay_figure(tmp_path / "x", image, labels % 255, truth, NAMES, COLORS, (1, 1))
    assert len(saved[-1].axes) == n


def test_without_a_truth_the_image_is_beside_the_prediction(monkeypatch, tmp_path):
  saved = capture(monkeypatch)
  image, truth = volume()
  figures.overlay_figure(tmp_path / "x.png", image, truth, None, NAMES, COLORS, (2, 1, 1))
  texts = {text.get_text() for text in saved[0].texts}
  assert len(saved[0].axes) == 6 and {"image", "prediction"} <= texts and "truth" not in texts


def test_uncertainty_is_a_column_of_its_own(tmp_path, monkeypatch):
  """Bright where it is high, and the plain image where it is 0; in pictures, too."""
  image, truth = np.full((8, 12, 10), 3.0), volume()[1]
  heat = np.zeros(truth.shape, np.float16)
  heat[truth == 1] = 1.5
  before = draw(tmp_path, image, truth, None, (1, 1, 1))
  after = draw(tmp_path, image, truth, None, (1, 1, 1), heat=heat)
  assert after.shape[1] > 1.3 * before.shape[1]
  right = after[:, before.shape[1]:]
  assert ((right[..., 0] > 220) & (right[..., 1] > 220)).any(), "the top of the colours is yellow"
  saved = capture(monkeypatch)
  for drawn, n in ((image, 9), (image[0], 3)):
    places = (0,) * (3 - drawn.ndim)
    figures.overlay_figure(tmp_path / "x", drawn, truth[places], None, NAMES, COLORS,
                           (1,) * drawn.ndim, heat=heat[places])
    assert len(saved[-1].axes) == n


@pytest.mark.parametrize("values", [np.zeros, lambda s: np.full(s, np.nan)])
def test_flat_and_broken_images_are_drawn(tmp_path, values):
  _, truth = volume()
  assert draw(tmp_path, values(truth.shape), truth, truth, (2, 1, 1)).size


@pytest.mark.parametrize("name", [r"a$\frac{x$", os.fsdecode(b"caf\xe9"), "two\nlines\x1b", "肝臓"])
@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no such character
def test_no_name_is_a_formula_or_an_error(tmp_path, name):
  image, truth = volume()
  path = tmp_path / "x.png"
  figures.overlay_figure(path, image, truth, truth, (name, "spleen"), COLORS, (2, 1, 1), name)
  assert path.stat().st_size


def test_legend_names_the_classes_that_are_seen(monkeypatch, tmp_path):
  saved = capture(monkeypatch)
  image, truth = volume()
  only = np.where(truth == 2, 2, UNLABELLED).astype(np.uint8)
  figures.overlay_figure(tmp_path / "x.png", image, only % 255, only, NAMES, COLORS, (2, 1, 1))
  (legend,) = saved[0].legends
  assert [text.get_text() for text in legend.get_texts()] == ["spleen", "unlabelled"]


def test_window_is_the_black_and_white_that_is_drawn():
  image = np.array([[-200.0, -160.0], [40.0, 900.0]])
  shown = display.displayable(image, (-160, 240))
  np.testing.assert_allclose(shown[..., 0], [[0, 0], [0.5, 1]])


def test_default_window_ignores_extremes():
  image = np.linspace(0, 1, 10_000).reshape(100, 100)
  image[0, 0], image[0, 1] = 1e9, np.inf
  lo, hi = display.robust_window(image)
  assert -0.1 < lo < 0.05 and 0.9 < hi < 1.1


def test_grids_that_differ_are_refused(tmp_path):
  image, truth = volume()
  for wrong in ((image[1:], truth, truth), (image, truth[1:], truth), (image, truth, truth[1:])):
    with pytest.raises(ValueError, match="same grid"):
      figures.overlay_figure(tmp_path / "x.png", *wrong, NAMES, COLORS, (1, 1, 1))


def test_a_failed_picture_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError("disk full")
  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(InputError, match="disk full"):
    draw(tmp_path, *volume()[:1], volume()[1], volume()[1], (1, 1, 1))
  assert not list(tmp_path.iterdir())
