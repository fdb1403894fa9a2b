"""A text whose tables are those of studies: written in between marks, never typed.

    <!-- hippocampus: Mean Dice -->
    <!-- end -->

The first word is that of a Markdown file in the folder of the results, which may lie deeper in it.
"""

from pathlib import Path
import re

from condseg_jax.atomic import write_text
from condseg_jax.errors import InputError

_MARK_BEGIN = re.compile(r"<!-- ([\w/-]+): ([^\n]+?) -->\n")
_MARK = re.compile(rf"({_MARK_BEGIN.pattern})(.*?)(<!-- end -->)", re.DOTALL)


def fill(path: Path, out: Path) -> None:
  """Puts the tables of OUT/STUDY.md between the marks of a Markdown file.

  Raises:
    InputError: a mark names a study without tables, or a table that it does not have.
  """
  write_text(path, filled(path.read_text(encoding="utf-8"), out))


def filled(text: str, out: Path) -> str:
  """The text with its tables, see `fill`."""
  def table(found: re.Match) -> str:
    begin, study, title, body, end = found.groups()
    if _MARK_BEGIN.search(body):
      raise InputError(begin.strip(), "has no end", "put <!-- end --> behind its table")
    return f"{begin}\n{section(out / f'{study}.md', title)}\n\n{end}"

  return _MARK.sub(table, text)


def section(path: Path, title: str) -> str:
  """The text under a heading `## title` of a Markdown file."""
  if not path.exists():
    raise InputError(path, "does not exist", "run the study, or make its tables with --tables")
  parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
  sections = dict(zip(parts[1::2], parts[2::2], strict=True))
  if title not in sections:
    raise InputError(path, f"has no table {title!r}", f"it has: {', '.join(sections)}")
  return sections[title].strip()
