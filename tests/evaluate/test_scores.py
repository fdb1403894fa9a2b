"""Summaries, intervals and tables: what is averaged, over how many, and what is left out."""

import csv
import json
import math

import numpy as np
import pytest

from condseg_jax import metrics
from condseg_jax.errors import InputError
from condseg_jax.evaluate.scores import bootstrap_ci
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.evaluate.scores import summarise
from condseg_jax.report import tables

NAN = math.nan


def mask(shape, n):
  """The first n voxels."""
  return (np.arange(np.prod(shape)) < n).reshape(shape)


def row(case, name, n_prediction, n_truth, *, shape=(4, 4, 4), **kwargs):
  truth = mask(shape, n_truth).astype(np.uint8)
  scores = metrics.score_case(mask(shape, n_prediction), truth, (10,) * len(shape), 5.0, **kwargs)
  return CaseScore(case, name, scores)


@pytest.fixture
def rows():
  """Liver: two good cases, one missed, one absent. Spleen: absent everywhere, once invented."""
  return [row("a", "liver", 8, 8), row("b", "liver", 8, 24), row("c", "liver", 0, 16),
          row("d", "liver", 0, 0),
          row("a", "spleen", 0, 0), row("b", "spleen", 6, 0)]


# Intervals

def test_constant_values_have_no_width():
  assert bootstrap_ci([0.7] * 9) == (0.7, 0.7)


@pytest.mark.parametrize("values, expected", [([], (NAN, NAN)), ([NAN, NAN], (NAN, NAN)),
                                              ([0.25], (0.25, 0.25)), ([NAN, 0.25], (0.25, 0.25))])
def test_none_and_one(values, expected):
  np.testing.assert_equal(bootstrap_ci(values), expected)


def test_interval_is_deterministic_and_blind_to_order_and_nan():
  values = np.random.default_rng(0).random(30)
  interval = bootstrap_ci(values)
  assert interval == bootstrap_ci(values[::-1])
  assert interval == bootstrap_ci([NAN, *values, NAN])
  assert interval != bootstrap_ci(values, seed=1)
  assert interval[0] < values.mean() < interval[1]


def test_interval_does_not_depend_on_the_chunks(monkeypatch):
  values = np.random.default_rng(0).random(30)
  whole = bootstrap_ci(values, resamples=1000)
  monkeypatch.setattr("condseg_jax.evaluate.scores._CHUNK", 30 * 7)
  assert bootstrap_ci(values, resamples=1000) == whole


def test_interval_is_that_of_the_mean():
  # For many cases the bootstrap comes to the normal interval, mean ± 1.96 sd / √n.
  values = np.random.default_rng(0).normal(0.8, 0.1, 400)
  half = 1.96 * values.std() / math.sqrt(values.size)
  np.testing.assert_allclose(bootstrap_ci(values), [values.mean() - half, values.mean() + half],
                             atol=0.05 * half)


def test_interval_covers_the_mean_about_as_often_as_it_says():
  rng = np.random.default_rng(1)
  samples = rng.normal(size=(200, 40))
  hits = sum(lo <= 0 <= hi for lo, hi in (bootstrap_ci(s, resamples=500) for s in samples))
  assert 0.88 <= hits / 200 <= 0.99
  narrow = sum(lo <= 0 <= hi for lo, hi in (bootstrap_ci(s, resamples=500, level=0.5)
                                            for s in samples))
  assert 0.38 <= narrow / 200 <= 0.62


def test_level_is_a_probability():
  with pytest.raises(ValueError, match="level"):
    bootstrap_ci([1, 2], level=95)


# Summaries

def test_summary_schema(rows):
  summary = summarise(rows, ["liver", "spleen"])
  assert set(summary) == {"classes", "mean_dice", "mean_iou", "n_classes", "n_cases", "size_unit"}
  assert list(summary["classes"]) == ["liver", "spleen"]
  for entry in summary["classes"].values():
    assert set(entry) == {"dice", "iou", "hd95", "surface_dice", "volume_error_ml",
                          "volume_error_relative", "false_positive_ml", "absent", "cases"}
    for key in set(entry) - {"absent", "cases"}:
      assert set(entry[key]) >= {"mean", "ci95", "n"} and len(entry[key]["ci95"]) == 2
  assert summary["n_cases"] == 4 and summary["size_unit"] == "ml"


def test_means_leave_out_what_is_absent_and_say_so(rows):
  liver = summarise(rows, ["liver", "spleen"])["classes"]["liver"]
  assert liver["dice"]["n"] == 3 and liver["cases"] == 4 and liver["absent"] == 1
  assert liver["dice"]["mean"] == pytest.approx((1 + 2 * 8 / (8 + 24) + 0) / 3)
  assert liver["iou"]["mean"] == pytest.approx((1 + 8 / 24 + 0) / 3)
  assert liver["volume_error_ml"]["mean"] == pytest.approx((0 - 16 - 16) / 3)
  assert liver["hd95"]["n"] == 2 and liver["hd95"]["undefined"] == 1
  assert liver["false_positive_ml"] == {"mean": 0, "ci95": [0, 0], "n": 1}


def test_false_positives_are_averaged_over_the_absent_cases(rows):
  spleen = summarise(rows, ["liver", "spleen"])["classes"]["spleen"]
  assert spleen["absent"] == 2
  assert spleen["false_positive_ml"]["mean"] == (0 + 6) / 2


@pytest.mark.parametrize("absent_rows", [[], [row("a", "spleen", 0, 0), row("b", "spleen", 0, 0)]])
def test_class_absent_everywhere_leaves_the_mean_finite(absent_rows):
  summary = summarise([row("a", "liver", 8, 8), *absent_rows], ["liver", "spleen"])
  assert summary["mean_dice"] == summary["mean_iou"] == 1
  assert summary["n_classes"] == 1
  spleen = summary["classes"]["spleen"]
  assert spleen["dice"]["n"] == 0 and math.isnan(spleen["dice"]["mean"])


def test_mean_over_classes_weighs_classes_not_cases():
  rows = [row("a", "liver", 8, 8), row("b", "liver", 8, 8), row("a", "spleen", 8, 24)]
  summary = summarise(rows, ["liver", "spleen"])
  assert summary["mean_dice"] == pytest.approx((1 + 2 * 8 / 32) / 2)


def test_nothing_at_all():
  summary = summarise([], ["liver"])
  assert math.isnan(summary["mean_dice"]) and summary["n_cases"] == 0
  assert "liver" in tables.format_table(summary)


def test_fast_scores_have_no_surface_statistics():
  summary = summarise([row("a", "liver", 0, 8, fast=True)], ["liver"])
  assert summary["classes"]["liver"]["hd95"]["n"] == 0
  assert summary["classes"]["liver"]["hd95"]["undefined"] == 0  # not asked for, so not failed


def test_images_also_have_a_pooled_iou():
  flat = {"shape": (8, 8)}
  rows = [row("a", "road", 40, 40, **flat), row("b", "road", 2, 4, **flat),
          row("c", "road", 3, 0, **flat), row("a", "fence", 0, 0, **flat)]
  summary = summarise(rows, ["road", "fence"])
  road = summary["classes"]["road"]
  assert road["pooled_iou"] == (40 + 2 + 0) / (40 + 4 + 3)
  assert road["iou"]["mean"] == pytest.approx((1 + 2 / 4 + 0) / 3)
  assert math.isnan(summary["classes"]["fence"]["pooled_iou"])
  assert summary["mean_pooled_iou"] == road["pooled_iou"]
  assert summary["size_unit"] == "px" and road["false_positive_px"]["mean"] == 3


def test_rows_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="'kidney'"):
    summarise([row("a", "kidney", 8, 8)], ["liver"])
  with pytest.raises(ValueError, match="two scores"):
    summarise([row("a", "liver", 8, 8), row("a", "liver", 4, 8)], ["liver"])
  with pytest.raises(ValueError, match="2-D and 3-D"):
    summarise([row("a", "liver", 8, 8), row("b", "liver", 8, 8, shape=(8, 8))], ["liver"])


# Files and the table

def test_json_has_null_where_there_is_no_value(tmp_path, rows):
  path = tmp_path / "summary.json"
  tables.write_summary(path, summarise(rows[3:5], ["liver", "spleen"]))

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")
  read = json.loads(path.read_text(), parse_constant=refuse)
  assert read["mean_dice"] is None
  assert read["classes"]["liver"]["dice"] == {"mean": None, "ci95": [None, None], "n": 0}
  assert tables.format_table(read) == tables.format_table(summarise(rows[3:5], ["liver", "spleen"]))


def test_csv_has_an_empty_cell_where_there_is_no_value(tmp_path, rows):
  path = tmp_path / "cases.csv"
  tables.write_cases(path, rows)
  with path.open(newline="") as file:
    read = list(csv.DictReader(file))
  assert [(line["case"], line["class"]) for line in read] == [(r.case, r.class_name) for r in rows]
  missed = read[2]
  assert float(missed["dice"]) == 0 and missed["hd95"] == ""
  assert float(read[1]["dice"]) == pytest.approx(rows[1].metrics["dice"])


def test_csv_of_full_and_fast_rows_keeps_the_columns_apart(tmp_path):
  path = tmp_path / "cases.csv"
  tables.write_cases(path, [row("a", "liver", 8, 8, fast=True), row("b", "liver", 8, 8)])
  with path.open(newline="") as file:
    fast, full = csv.DictReader(file)
  assert fast["hd95"] == "" and float(full["hd95"]) == 0 and fast["tp"] == full["tp"] == "8"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / "summary.json"
  tables.write_summary(path, {"mean_dice": 0.5})
  with pytest.raises(TypeError):
    tables.write_summary(path, {"mean_dice": object()})
  assert json.loads(path.read_text()) == {"mean_dice": 0.5}

  def fail(*_):
    raise OSError("disk full")
  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(InputError, match="disk full"):
    tables.write_summary(path, {"mean_dice": 0.6})
  assert json.loads(path.read_text()) == {"mean_dice": 0.5}
  assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_table_columns_are_aligned_and_complete(rows):
  text = tables.format_table(summarise(rows, ["liver", "spleen"]))
  header, rule, liver, spleen, _, mean, *notes = text.splitlines()
  for column in ("class", "Dice [95 % CI]", "IoU", "HD95 mm", "surface Dice", "n"):
    assert column in header
  assert len(header) == len(rule) == len(liver) == len(spleen) == len(mean)
  assert "0.500 [0.000, 1.000]" in liver and liver.endswith(" 3")
  assert "0.000 [0.000, 0.000]" in spleen  # invented once
  assert any("liver" in note and "HD95 undefined in 1 case" in note for note in notes)
  assert any("spleen" in note and "3.00 ml" in note for note in notes)


def test_table_never_shows_a_missing_value_as_zero():
  text = tables.format_table(summarise([row("a", "liver", 0, 0)], ["liver"]))
  liver = text.splitlines()[2]
  assert liver.split() == ["liver", "–", "–", "–", "–", "0"]


def test_table_of_images_is_in_pixels():
  text = tables.format_table(summarise([row("a", "road", 8, 8, shape=(8, 8))], ["road"]))
  assert "HD95 px" in text and "pooled IoU" in text and " mm" not in text
