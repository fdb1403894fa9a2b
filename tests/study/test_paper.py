"""Tables in a text are those of the studies, and stay so."""

from pathlib import Path
import shutil

import pytest

from condseg_jax.analysis import files
from condseg_jax.errors import InputError
from condseg_jax.study import report
from condseg_jax.study.paper import fill
from condseg_jax.study.paper import filled

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


@pytest.mark.parametrize("study", sorted(p.name for p in (ROOT / "results" / "records").glob("*")))
def test_tables_are_made_again_of_the_records(study, tmp_path):
  shutil.copytree(ROOT / "results" / "records" / study, tmp_path / "records" / study)
  report.write(tmp_path, study)
  for ending in ("csv", "md", "tex"):
    name = f"{study}.{ending}"
    assert (tmp_path / name).read_text() == (ROOT / "results" / name).read_text(), name


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "results" / "analysis").glob("*")))
def test_rows_and_summary_are_made_again_of_the_numbers(name, tmp_path):
  folder = ROOT / "results" / "analysis" / name
  study = files.read_json(folder)
  files.write_csv(tmp_path, study)
  files.write_summary(tmp_path, study)
  for file in (files.CSV, files.SUMMARY):
    assert (tmp_path / file).read_text() == (folder / file).read_text(), file
