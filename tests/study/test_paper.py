"""Tables in a text are those of the studies, and stay so."""

from pathlib import Path
import shutil
import sys

import pytest

from condseg_jax.analysis import files
from condseg_jax.cli.study import main
from condseg_jax.errors import InputError
from condseg_jax.study import declare
from condseg_jax.study import records
from condseg_jax.study import report
from condseg_jax.study.report import fill
from condseg_jax.study.report import filled

ROOT = Path(__file__).parent.parent.parent
TABLES = "# Study s\n\nOf records.\n\n## Scores\n\n| a |\n| --- |\n\nA note.\n\n## Ranks\n\n| b |\n"
TEXT = "Before.\n\n<!-- s: Scores -->\nold\n<!-- end -->\n\nAfter, <!-- no mark -->.\n"


def test_a_table_and_its_note_stand_between_the_marks(tmp_path):
  (tmp_path / "s.md").write_text(TABLES)
  paper = tmp_path / "paper.md"
  paper.write_text(TEXT)
  fill(paper, tmp_path)
  wanted = TEXT.replace("old\n", "\n| a |\n| --- |\n\nA note.\n\n")
  assert paper.read_text() == wanted
  fill(paper, tmp_path)  # again changes nothing
  assert paper.read_text() == wanted


@pytest.mark.parametrize("mark, fault", [("t: Scores", "does not exist"),
                                         ("s: Figures", "it has: Scores, Ranks")])
def test_a_mark_that_names_nothing(mark, fault, tmp_path):
  (tmp_path / "s.md").write_text(TABLES)
  with pytest.raises(InputError, match=fault):
    filled(TEXT.replace("s: Scores", mark), tmp_path)


def test_a_mark_without_end_takes_nothing(tmp_path):
  (tmp_path / "s.md").write_text(TABLES)
  with pytest.raises(InputError, match="s: Ranks -->: has no end"):
    filled("<!-- s: Ranks -->\nMy text.\n" + TEXT, tmp_path)


def test_the_tables_of_the_results_are_those_of_the_studies():
  text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
  assert filled(text, ROOT / "results") == text
  assert text.count("<!-- end -->") >= 3


STUDIES = declare.names(ROOT / "experiments")


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_whole_and_told(study, monkeypatch):
  """Every variant with every seed has its record, and the paper shows the table."""
  monkeypatch.setattr(sys, "path", list(sys.path))
  declared, = declare.load(study, ROOT / "experiments")
  found = records.of_study(ROOT / "results", study)
  assert {(r["label"], r["seed"]) for r in found} == {
      (trial.variant.label, trial.seed) for trial in declared.trials()}
  assert f"<!-- {study}: " in (ROOT / "RESULTS.md").read_text(encoding="utf-8")


def test_there_is_no_record_of_another_study():
  assert {path.name for path in (ROOT / "results" / "records").iterdir()} == set(STUDIES)


@pytest.mark.parametrize("study", STUDIES)
def test_tables_are_made_again_of_the_records(study, tmp_path):
  shutil.copytree(ROOT / "results" / "records" / study, tmp_path / "records" / study)
  report.write(tmp_path, study)
  for ending in ("csv", "md", "tex"):
    name = f"{study}.{ending}"
    assert (tmp_path / name).read_text() == (ROOT / "results" / name).read_text(), name


@pytest.mark.parametrize("name", ["hippocampus", "phantom"])
def test_the_tables_of_all_are_with_those_of_the_analyses(name, tmp_path, experiments):
  """What people read of an analysis is made again of its numbers by the command of the tables."""
  folder = ROOT / "results" / "analysis" / name
  out = tmp_path / "analysis" / name
  out.mkdir(parents=True)
  shutil.copy(folder / files.JSON, out)
  assert main(["study", "all", f"--experiments={experiments}", f"--out={tmp_path}",
               "--tables"]) == 0
  for file in (files.CSV, files.SUMMARY):
    assert (out / file).read_text() == (folder / file).read_text(), file
  assert {p.name for p in out.glob("*.png")} == {p.name for p in folder.glob("*.png")}
