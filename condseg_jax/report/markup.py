"""Tables as Markdown and as LaTeX."""

from collections.abc import Sequence
from typing import NamedTuple

NO_VALUE = "–"
_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--", ">": "$>$", "<": "$<$"}


class Table(NamedTuple):
  """A table of texts.

  Attributes:
    title: in a few words.
    note: what has to be said beside it.
    header: of the columns.
    rows: as long as the header each.
    names: how many columns, from the left, hold names.
  """

  title: str
  note: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  names: int = 1


def markdown(tables: Sequence[Table], title: str, preface: str) -> str:
  """A page of tables."""
  parts = [f"# {title}", preface]
  for table in tables:
    rule = ["---"] * table.names + ["---:"] * (len(table.header) - table.names)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
             for row in (table.header, rule, *table.rows)]
    parts += [f"## {table.title}", "\n".join(lines), table.note]
  return "\n\n".join(part for part in parts if part) + "\n"


def latex(tables: Sequence[Table], title: str, preface: str) -> str:
  """The tables as `tabular`s that need no package; title, preface and notes are comments."""
  parts = [_comment(f"{title}. {preface}")]
  for table in tables:
    columns = "l" * table.names + "r" * (len(table.header) - table.names)
    lines = [" & ".join(map(escape, row)) + r" \\" for row in (table.header, *table.rows)]
    parts.append("\n".join([
        _comment(f"{table.title}. {table.note}"), rf"\begin{{tabular}}{{{columns}}}", r"\hline",
        lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]))
  return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
  """A text that LaTeX prints as it is."""
  return "".join(_TEX.get(character, character) for character in text)


def signed(value: float, digits: int = 3) -> str:
  """A difference, with a true minus."""
  if value != value:
    return NO_VALUE
  text = f"{value:+.{digits}f}"
  return text.replace("-", "−")


def number(value: float, digits: int = 3) -> str:
  """With a true minus, and none before a zero."""
  if value != value:
    return NO_VALUE
  return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _comment(text: str) -> str:
  return "\n".join(f"% {line}".rstrip() for line in text.strip().splitlines())
