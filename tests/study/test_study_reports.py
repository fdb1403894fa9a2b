"""Tables and figures of a study, from records alone."""

import csv
import json
import re

from matplotlib import image as images
import numpy as np
import pytest

from condseg_jax.cli.study import main
from condseg_jax.report import markup
from condseg_jax.study import figures
from condseg_jax.study import overlay
from condseg_jax.study import records
from condseg_jax.study import report
from support.made_records import record

SCANNERS = ["liver", "liver", "spleen", "spleen"]


def written(out, rows):
  for row in rows:
    records.write(records.path_of(out, "made", f"{row['label']}-s{row['seed']}".replace(" ", "_"),
                                  row["key"]), row)
  return rows


@pytest.fixture
def rows():
  """cond_dec is 0.1 better than cond_2nd in every case; heads is as good, with one seed."""
  rng = np.random.default_rng(0)
  base = rng.uniform(0.5, 0.8, (4, 2))
  return [record(name, seed, base + gain + 0.01 * seed, order=order, groups=SCANNERS)
          for order, (name, gain) in enumerate((("cond_2nd", 0.0), ("cond_dec", 0.1),
                                                ("heads_%", 0.1)))
          for seed in ((0,) if name == "heads_%" else (0, 1, 2))]


def test_scores_differences_and_ranks(rows):
  found = report.outcome(rows, resamples=2000)
  made = {table.title: table for table in report.study_tables(found)}
  scores = made["Mean Dice"]
  assert scores.header[:4] == ["variant", "anterior", "posterior", "mean"]
  assert [row[0] for row in scores.rows] == ["cond_2nd", "cond_dec", "heads_%"]
  mean = np.mean([np.mean(np.array(r["scores"]["dice"])) for r in rows[:3]])
  assert scores.rows[0][3] == f"{mean:.3f} ± 0.010"
  assert "±" not in scores.rows[2][3] and scores.rows[2][4:] == ["1,234", "40", "1", "2.0"]
  differences = made["Difference to the reference"]
  assert [row[:2] for row in differences.rows] == [["cond_2nd", "cond_dec"],
                                                   ["heads_%", "cond_dec"]]
  value, low, high = map(float, re.findall(r"[+-]\d\.\d+",
                                           differences.rows[0][-2].replace("−", "-")))
  assert value == pytest.approx(-0.1, abs=1e-3) and low < value < high < -0.07
  assert differences.rows[0][-1] == "0.000"
  ranks = made["Probability of each rank"]
  assert ranks.rows[-1][0] == "cond_2nd" and ranks.rows[-1][2:] == ["0.00", "0.00", "1.00"]


def test_scanners_and_confusions(rows):
  found = report.outcome(rows, resamples=50)
  scanners, values = report.scanner_scores(found, "cond_2nd")
  dice = np.mean([r["scores"]["dice"] for r in rows[:3]], axis=0)
  assert scanners == ["liver", "spleen"]
  np.testing.assert_allclose(values, np.stack([dice[:2].mean(0), dice[2:].mean(0)], 1))


@pytest.mark.parametrize("fusion", ["argmax", "independent"])
def test_confusions_are_shares_of_the_truth(fusion, rows):
  """Rows are true classes; masks that overlap take more than all of one, and of none unknown."""
  found = report.outcome([row | {"fusion": fusion} for row in rows], resamples=50)
  count = 2 * 4  # tp + fn, each one voxel of four cases
  table = np.arange(9).reshape(3, 3) * 10 * 2  # of two scanners
  none = table[2] / (table[2].sum() if fusion == "argmax" else np.nan)
  np.testing.assert_allclose(report.confusion_shares(found, "cond_dec"),
                             [table[0] / count, table[1] / count, none])


def test_everything_is_written_from_records_alone(rows, tmp_path, capsys):
  written(tmp_path, rows)
  study = tmp_path / "made.py"
  study.write_text('''"""Made."""
from condseg_jax.study.declare import Study, Variant


def get_study():
  return Study("made", (Variant("cond_dec", (), "made"),))
''')
  assert main(["study", str(study), f"--out={tmp_path}", "--tables"]) == 0
  told = capsys.readouterr().out.split()
  names = {"made.csv", "made.md", "made.tex", *(f"figures/made_{kind}.png" for kind in (
      "curves", "box", "scanners", "confusion"))}
  assert {str(tmp_path / name) for name in names} == set(told)
  for name in names:
    assert (tmp_path / name).stat().st_size > 500
    if name.endswith("png"):
      assert images.imread(tmp_path / name).std() > 0.02
  with open(tmp_path / "made.csv", encoding="utf-8") as stream:
    assert len(list(csv.DictReader(stream))) == 7
  page = (tmp_path / "made.md").read_text()
  blocks = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
  assert len(blocks) == page.count("\n## ") == 5
  for block in blocks:
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
  tex = (tmp_path / "made.tex").read_text()
  tabulars = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end", tex, re.DOTALL)
  assert len(tabulars) == 5 and r"heads\_\%" in tex
  for columns, body in tabulars:
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) > 1 and "±" not in body
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1 for line in lines)
  before = {p: p.read_bytes() for p in tmp_path.rglob("made*.*") if p.suffix != ".py"}
  assert main(["study", str(study), f"--out={tmp_path}", "--tables"]) == 0
  assert {p: p.read_bytes() for p in before} == before  # the same records, the same bytes


def test_levels_have_a_figure_and_families_of_their_own(tmp_path):
  dice = np.full((5, 2), 0.5)
  rows = written(tmp_path, [
      record(name, 0, dice + gain + level / 1000, order=i, level=level,
             against=f"cond_dec {level}")
      for i, (name, gain, level) in enumerate(
          (n, g, v) for v in (5, 10, 80) for n, g in (("cond_dec", 0.1), ("indivs", 0.0)))])
  found = report.outcome(rows, resamples=100)
  assert list(found.families) == ["cond_dec 5", "cond_dec 10", "cond_dec 80"]
  titles = [t.title for t in report.study_tables(found)]
  assert not any("Probability" in t for t in titles)  # of two, the differences say it
  names = {p.name for p in figures.write(tmp_path / "figures", "made", found)}
  assert "made_levels.png" in names and "made_scanners.png" not in names


def test_boxes_are_of_cases_and_seeds():
  """Seeds are not averaged: a class that one seed finds and another does not has both."""
  rows = [record("cond_dec", seed, [[0.0 if seed else 0.8, 0.5], [0.0 if seed else 0.9, np.nan]])
          for seed in (0, 1)]
  found = report.outcome(rows, resamples=10)
  np.testing.assert_array_equal(figures.case_scores(found, "cond_dec", "anterior"),
                                [0.8, 0.9, 0.0, 0.0])
  np.testing.assert_array_equal(figures.case_scores(found, "cond_dec", "posterior"), [0.5, 0.5])
  panels = figures.draw_boxes(found).axes
  assert [axes.get_title() for axes in panels] == ["anterior", "posterior"]
  _, _, low, high, median, *_ = (line.get_ydata().tolist() for line in panels[0].lines)
  assert (low, high, median) == ([0, 0], [0.9, 0.9], [0.4, 0.4])  # behind the two whiskers


def test_a_curve_is_the_mean_over_classes_and_members():
  """Two members of 40 steps are 80 updates; what a batch had no class for is left out."""
  row = record("indivs", 0, np.ones((2, 2)))
  row["curves"] = [{"step": [10, 20, 30], "dice": {"a": [0.1, None, 0.5]}},
                   {"step": [10, 20], "dice": {"b": [0.3, 0.7]}}]
  steps, values = figures.curve_of(row)
  np.testing.assert_array_equal(steps, [20, 40])
  np.testing.assert_allclose(values, [0.2, 0.7])
  np.testing.assert_allclose(figures.smoothed(np.array([0, 0, 1, 0, 0, np.nan])),
                             [1 / 3, 1 / 4, 1 / 5, 1 / 4, 1 / 3, 0])


def test_the_settings_of_a_row_are_those_that_rows_differ_in(tmp_path):
  rows = [record("one", 0, np.ones((1, 2))), record("two", 0, np.ones((1, 2)), order=1)]
  same = {"batch": 2, "sides": {"a": "H"}}
  rows[0]["configs"] = [{"seed": 1, "data": {**same, "keep": []}, "loss": {"bce": 0.5}}]
  rows[1]["configs"] = [{"seed": 2, "data": {**same, "keep": [k]}, "loss": {"bce": 1}}
                        for k in "ab"]
  wanted = [{"data.keep": [], "loss.bce": 0.5}, {"data.keep": [["a"], ["b"]], "loss.bce": 1}]
  assert records.varied(rows) == wanted
  records.write_csv(tmp_path / "made.csv", rows)
  with open(tmp_path / "made.csv", encoding="utf-8") as stream:
    assert [json.loads(row["config"]) for row in csv.DictReader(stream)] == wanted


def test_a_map_without_class_is_drawn_as_none():
  """A network that is told no class has one map, which is no mask of the first of them."""
  image, label = np.zeros((4, 20, 24)), np.zeros((4, 20, 24), np.uint8)
  label[:, 5:15, 5:15] = 1
  kept = {"image": image, "truth": label, "prediction": label, "spacing": np.ones(3),
          "names": np.array(["anterior", "posterior"]), "modality": np.array("ct")}
  figure = overlay.draw({"cond_dec": kept, "single_map": kept}, ["anterior", "posterior"],
                        {"single_map"})
  truth, told, single = ([c.get_facecolor()[0, :3].tolist() for c in axes.collections
                          if len(c.get_facecolor())] for axes in figure.axes[:3])
  assert truth == told != single and np.ptp(single[0]) == 0  # grey
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert names == ["anterior", "posterior", overlay.UNTOLD]


def test_latex_prints_what_was_meant():
  assert markup.escape("a_b & 5 % {x} $1 #2 ~^\\") == (
      r"a\_b \& 5 \% \{x\} \$1 \#2 \textasciitilde{}\textasciicircum{}\textbackslash{}")
  assert [markup.number(x, 2) for x in (-0.123, -0.001, 2)] == ["−0.12", "0.00", "2.00"]
  assert markup.signed(-0.0123) == "−0.012" and markup.signed(float("nan")) == "–"


@pytest.mark.parametrize("drawn", [True, False])
def test_pictures_of_real_images_stay_in_work(drawn, rows, tmp_path):
  """The kept case has the truth in the left half; the picture is drawn once for each variant."""
  if not drawn:
    for row in rows:
      row["scores"]["groups"] = [""] * 4
  written(tmp_path, rows)
  assert overlay.write(tmp_path, "made", rows) is None
  image = np.random.default_rng(0).normal(0, 50, (6, 20, 24))
  truth = np.zeros(image.shape, np.uint8)
  truth[2:4, 5:15, 3:10] = 1
  truth[2:4, 5:15, 14:20] = 2
  for row in rows[::3]:
    path = tmp_path / "work" / "shown" / f"{row['key'][:16]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=image, truth=truth, prediction=3 - truth, spacing=[2.0, 1.0, 1.0],
             names=np.array(["anterior", "posterior"]), colors=np.zeros((2, 3)),
             case=np.array("c"), modality=np.array("ct"))
  path = overlay.write(tmp_path, "made", rows)
  assert path == (tmp_path if drawn else tmp_path / "work") / "figures" / "made_overlay.png"
  assert images.imread(path).shape[0] > 100


def test_damaged_records_are_named(tmp_path, rows):
  written(tmp_path, rows)
  path = next((tmp_path / "records" / "made").iterdir())
  path.write_text(path.read_text()[:100])
  with pytest.raises(records.InputError, match=path.name):
    records.of_study(tmp_path, "made")
  assert not records.known(path, "0" * 64)


def test_two_results_of_one_trial_are_refused(tmp_path, rows):
  written(tmp_path, rows)
  records.write(records.path_of(tmp_path, "made", "again", "9" * 64), rows[0] | {"key": "9" * 64})
  with pytest.raises(records.InputError, match="two results of 'cond_2nd' with seed 0"):
    records.of_study(tmp_path, "made")


@pytest.mark.parametrize("more, reason", [
    ({"truth": "1" * 64}, "scored on different cases"),
    ({"data": "1" * 64}, "of 'cond_2nd' with different settings or data"),
    ({"configs": [{"train": {"steps": 7}}]}, "of 'cond_2nd' with different settings or data")])
def test_results_that_differ_in_more_than_the_seed_are_refused(more, reason, tmp_path, rows):
  rows[1] |= more
  written(tmp_path, rows)
  with pytest.raises(records.InputError, match=reason):
    records.of_study(tmp_path, "made")


def test_what_another_process_is_writing_is_no_record(tmp_path, rows):
  written(tmp_path, rows)
  (tmp_path / "records" / "made" / ".0123.cond_dec-s9.json").write_text('{"study": ')
  assert len(records.of_study(tmp_path, "made")) == len(rows)


def test_a_curve_is_of_the_training_that_ended(tmp_path):
  """One that was killed before its first checkpoint is begun anew in the same folder."""
  steps = [10, 20, 30, 10, 20, 30, 40]
  (tmp_path / "metrics.jsonl").write_text("".join(
      json.dumps({"step": s, "loss": 1.0, "dice/x": i / 10}) + "\n" for i, s in enumerate(steps)))
  assert records.curve(tmp_path) == {"step": [10, 20, 30, 40], "dice": {"x": [0.3, 0.4, 0.5, 0.6]}}


def test_curves_are_thinned_to_their_end(tmp_path):
  lines = [{"step": i, "loss": 1.0, "dice/x": i / 1000} for i in range(10, 3001, 10)]
  lines.insert(5, {"step": 50, "held_out/mean_dice": 0.5})
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  found = records.curve(tmp_path)
  assert len(found["step"]) == 100 and found["step"][-1] == 3000 and found["step"][0] == 30
  assert found["dice"]["x"][-1] == 3.0
