"""A case of the page: outlines that enclose their voxels, errors, sizes, limited data."""

import base64
import gzip
import math
import os
import re

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import nibabel as nib
import numpy as np
import pytest

from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.report.page import collect
from condseg_jax.report.page import plots
from condseg_jax.report.page import slices
from condseg_jax.report.page.case import error_map
from condseg_jax.report.page.case import structure_sizes
from condseg_jax.report.page.scan import encode_scan
from support.pages import scored
from support.pages import segmented
from support.pages import TABLE
from support.pages import VALUES
from support.pages import volume


def polygons(path: str) -> list[np.ndarray]:
  """The closed lines of a path, (x, y)."""
  lines = []
  for start, moves in re.findall(r"M(-?\d+ -?\d+)l([^z]*)z", path):
    points = np.array([start.split(), *np.array(moves.split()).reshape(-1, 2)], int)
    lines.append(np.cumsum(points, axis=0))
  return lines


def inside(path: str, x: float, y: float) -> bool:
  """Even-odd rule: counts how often a ray to the right crosses the lines."""
  crossings = 0
  for line in polygons(path):
    for (x0, y0), (x1, y1) in zip(line, np.roll(line, -1, axis=0), strict=True):
      if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
        crossings += 1
  return crossings % 2 == 1


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_outlines_enclose_the_pixels_of_the_mask(mask):
  path = slices.outline(mask)
  for (y, x), value in np.ndenumerate(mask):
    # Just beside the centre, off the half-pixel lines.
    assert inside(path, 2 * x + 1 + 1e-3, 2 * y + 1 + 2e-3) == value


def test_outline_of_one_pixel_and_of_a_row():
  assert polygons(slices.outline(np.ones((1, 1), bool)))[0].shape == (4, 2)
  (row,) = polygons(slices.outline(np.ones((1, 9), bool)))
  assert len(row) == 6, "points on straight stretches are left out"
  assert slices.outline(np.zeros((3, 3), bool)) == ""


def test_slices_are_the_way_up_that_their_letters_say():
  """A structure at the superior, anterior, right end lies at the S, A and R edges."""
  labels = np.zeros((6, 8, 10), np.uint8)
  labels[-1, 0, 0] = 1  # axes run towards S, P, L
  figures = slices.draw_slices(labels.astype(float), {"prediction": labels}, ["dot"],
                               (3.0, 1.0, 2.0), (0, 1), (5, 0, 0))
  for figure in figures:
    (path,) = re.findall(r'<path class="k0" d="([^"]*)"', figure)
    letters = {letter: (float(x), float(y)) for x, y, letter in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([A-Z])<', figure)}
    sx, sy = map(float, re.search(r'scale\(([\d.]+) ([\d.]+)\)', figure).groups())
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure).groups())
    offset = map(float, re.search(r'translate\(([\d.]+) ([\d.]+)\)', figure).groups())
    x, y = polygons(path)[0].mean(0) * (sx, sy) + tuple(offset)
    for letter in set("SAR") & set(letters):
      lx, ly = letters[letter]
      assert abs(x - lx) < width / 3 or abs(y - ly) < height / 3
      # The letter marks the edge: the structure lies on its half of the slice.
      assert (x - width / 2) * (lx - width / 2) >= 0 and (y - height / 2) * (ly - height / 2) >= 0


def test_slices_of_thin_volumes_have_one_size_and_room_for_their_letters():
  labels = np.zeros((2, 40, 40), np.uint8)
  figures = slices.draw_slices(labels.astype(float), {"prediction": labels}, [],
                               (1.0, 1.0, 1.0), (0, 1), (0, 0, 0))
  assert len({re.search(r'viewBox="[^"]*" width="\d+" height="\d+"', f)[0] for f in figures}) == 1
  for figure, letters in zip(figures, ("RLAP", "RLSI", "APSI"), strict=True):
    assert "".join(re.findall(">([A-Z])</text>", figure)) == letters
  assert 'translate(0 19)"><image width="40" height="2"' in figures[1], "centred"


def test_letters_that_would_collide_are_left_out():
  labels = np.zeros((400, 4, 4), np.uint8)
  for figure in slices.draw_slices(labels.astype(float), {"prediction": labels}, [],
                                   (1.0, 1.0, 1.0), (0, 1), (0, 0, 0)):
    assert re.findall(">([A-Z])</text>", figure) in (["A", "P"], ["S", "I"])


def test_a_millimetre_is_as_long_in_every_slice():
  figures = segmented().slices
  scales = []
  for figure in figures:
    _, width_mm = re.search(r'viewBox="0 0 (([\d.]+)) ', figure).groups()
    scales.append(float(re.search(r' width="(\d+)" height', figure).group(1)) / float(width_mm))
  np.testing.assert_allclose(scales, scales[0], rtol=0.01)


def test_errors_count_only_where_somebody_annotated():
  truth = {"ball": np.array([1, 1, 0, 0, UNLABELLED, 0], np.uint8),
           "box": np.array([0, 0, 1, 0, 0, UNLABELLED], np.uint8)}
  found = {"ball": np.array([1, 0, 1, 1, 1, 0], bool), "box": np.array([0, 0, 0, 0, 0, 1], bool),
           "cone": np.ones(6, bool)}
  expected = [0, slices.MISSED, slices.MIXED, slices.EXTRA, 0, 0]
  np.testing.assert_array_equal(error_map(found, truth), expected)
  np.testing.assert_array_equal(error_map({}, truth),
                                [slices.MISSED] * 3 + [0] * 3)


def test_sizes_are_voxels_times_their_volume():
  label = np.zeros((4, 5, 6), np.uint16)
  label[:2, :3, :2] = 300
  label[3, 4, 5] = 2
  sizes = structure_sizes(Volume(label, np.diag([1.0, 2.0, 5.0, 1.0])),
                          {"a": 300, "b": 2, "c": 7})
  assert sizes == {"a": {"volume_ml": 0.12}, "b": {"volume_ml": 0.01}, "c": {"volume_ml": 0.0}}
  flat = structure_sizes(Volume(label[:, :, 0], np.eye(3)), {"a": 300})
  assert flat == {"a": {"area_px": 6.0}}


def decoded(text):
  return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.mark.parametrize("limit", [256, 7])
def test_scans_lie_where_the_image_lies(limit):
  image, label = volume()
  layers = {"prediction": label.array, "truth": np.where(label.array == 1, 1, UNLABELLED)}
  window = (-50.0, 150.0)
  scan = encode_scan(image, layers, {"box": 1, "ball": 0}, window, (1, 2, 3), limit=limit)
  shown = decoded(scan.image)
  assert shown.get_data_dtype() == np.uint8 and max(shown.shape) <= limit
  corners = np.array([[-0.5] * 3, np.array(image.array.shape) - 0.5])
  theirs = np.array([[-0.5] * 3, np.array(shown.shape) - 0.5])
  np.testing.assert_allclose(nib.affines.apply_affine(shown.affine, theirs),
                             nib.affines.apply_affine(image.affine, corners), atol=1e-4)
  if limit == 256:  # intensities are restored to one of 255 steps
    expected = np.clip(image.array, *window)
    np.testing.assert_allclose(shown.get_fdata(), expected, atol=0.51 * 200 / 255)
    found = np.asarray(decoded(scan.labels["prediction"]).dataobj)
    np.testing.assert_array_equal(found, np.choose(label.array, [0, 2, 1]))
    truth = np.asarray(decoded(scan.labels["truth"]).dataobj)
    np.testing.assert_array_equal(truth, np.where(label.array == 1, 2, 3))
  for name, value in {"ball": 1, "box": 2}.items():
    voxel = np.rint(np.linalg.solve(image.affine, [*scan.centres[name], 1])[:3]).astype(int)
    near = tuple(slice(max(0, i - 1), i + 2) for i in voxel)
    assert (label.array[near] == value).any()
  assert decoded(scan.labels["truth"]).header["intent_code"] == 1002
  assert not bytes(shown.header["descrip"]).strip(b"\0")


def test_broken_voxels_and_flat_images_make_scans():
  label = np.zeros((4, 4, 4), np.uint8)
  image = np.full(label.shape, np.nan, np.float32)
  image[0] = np.inf
  scan = encode_scan(Volume(image, np.eye(4)), {"prediction": label}, {"a": 0}, (5.0, 5.0),
                     (0, 0, 0))
  assert np.isfinite(decoded(scan.image).get_fdata()).all() and not scan.centres


def test_more_classes_than_a_byte_holds_make_no_scan():
  label = Volume(np.zeros((3, 3, 3), np.uint16), np.eye(4))
  ids = {f"c{i}": i for i in range(254)}
  assert encode_scan(label, {"prediction": label.array}, ids, (0, 1), (0, 0, 0)) is None


def test_names_are_numbers_unless_asked_for():
  assert collect.case_names(["doe_jane", "roe"], False) == ["case 1", "case 2"]
  assert collect.case_names(["doe_jane", "roe"], True) == ["doe_jane", "roe"]
  assert collect.case_names([os.fsdecode(b"caf\xe9\n")], True) == [r"caf\xe9\n"]


def test_reasons_of_failures_name_no_file(tmp_path):
  path = tmp_path / "ward" / "doe_jane.nii.gz"
  reason = f"in {path}: {path.parent} holds doe_jane.nii.gz beside doe_jane.json"
  error = InputError(path, reason, "cure")
  hidden = collect.failed_case("case 1", error, path, show_names=False).failure
  assert "doe" not in hidden and "ward" not in hidden and "holds" in hidden
  assert collect.failed_case("x", error, path, show_names=True).failure == reason
  path = tmp_path / os.fsdecode(b"doe\xe9\n.nii")
  error = InputError(path, f"in {path}", "cure")
  assert collect.failed_case("case 1", error, path, show_names=False).failure == "in (file)"


def test_a_page_holds_scans_within_its_budget():
  cases, size = [], segmented().scan.size
  for number in range(5):
    collect.add(cases, segmented(f"case {number}"), budget=int(3.5 * size))
  assert [bool(case.scan) for case in cases] == [True] * 3 + [False] * 2
  assert not cases[0].no_scan and "viewer" in cases[4].no_scan


def test_best_and_worst_keep_their_scans():
  cases = []
  sizes = [scored("x", 0, shift)[0].scan.size for shift in (0, 1, 2, 4)]
  for shift in (2, 0, 1, 4):
    collect.add(cases, scored(f"shift {shift}", 0, shift)[0], budget=2 * max(sizes))
  assert {case.name for case in cases if case.scan} == {"shift 0", "shift 4"}
  assert all(case.slices and case.measures for case in cases)


def test_box_plots_show_quartiles_and_every_case():
  values = [0.5, 0.6, 0.7, 0.8, 0.9, 0.1, math.nan]
  drawn = plots.box_plot(values, [(f"#case-{i}", f"case {i}") for i in range(7)], "k0", 0.0)

  def place(value):
    return 8 + (380 - 16) * value
  low, width = map(float, re.search(r'class="box" x="([\d.]+)" y="7" width="([\d.]+)"',
                                    drawn).groups())
  quartiles = np.percentile(values[:6], [25, 50, 75])
  assert low == pytest.approx(place(quartiles[0]), abs=0.06)
  assert low + width == pytest.approx(place(quartiles[2]), abs=0.2)
  median = re.search(r'class="median" d="M([\d.]+)', drawn).group(1)
  assert float(median) == pytest.approx(place(quartiles[1]), abs=0.06)
  dots = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)]
  np.testing.assert_allclose(dots, [place(v) for v in values[:6]], atol=0.06)
  # 0.1 lies more than one and a half boxes below: the whisker ends at 0.5.
  whisker = re.search(r'class="whisker" d="M([\d.]+)', drawn).group(1)
  assert float(whisker) == pytest.approx(place(0.5), abs=0.06)


def test_the_scale_begins_below_all_scores():
  assert plots.lower_end([0.83, 0.91, math.nan]) == pytest.approx(0.8)
  assert plots.lower_end([0.8, 0.9]) == pytest.approx(0.7)
  assert plots.lower_end([0.0, 1.0]) == 0.0 and plots.lower_end([math.nan]) == 0.0
  assert plots.lower_end([1.0]) == 0.9


def test_structures_of_the_page_are_those_asked_for():
  assert list(segmented().measures) == list(VALUES) and set(VALUES) <= set(TABLE.names)
