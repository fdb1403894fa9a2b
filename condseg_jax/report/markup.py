"""Formats numbers and tables as Markdown and LaTeX."""

from collections.abc import Sequence
from typing import NamedTuple

NO_VALUE = "–"
_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--", ">": "$>$", "<": "$<$"}


class Table(NamedTuple):
  """A table of strings.

  Attributes:
    title: short heading.
    note: text below the table.
    header: column headings.
    rows: cells, one per heading.
    names: number of leading columns with names, which are left-aligned.
  """

  title: str
  note: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  names: int = 1


def markdown(tables: Sequence[Table], title: str, preface: str) -> str:
  """Renders tables as a Markdown page."""
  parts = [f"# {title}", preface]
  for table in tables:
    rule = ["---"] * table.names + ["---:"] * (len(table.header) - table.names)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
             for row in (table.header, rule, *table.rows)]
    parts += [f"## {table.title}", "\n".join(lines), table.note]
  return "\n\n".join(part for part in parts if part) + "\n"


def latex(tables: Sequence[Table], title: str, preface: str) -> str:
  """Renders tables as `tabular`s without extra packages; other texts become comments."""
  parts = [_comment(f"{title}. {preface}")]
  for table in tables:
    columns = "l" * table.names + "r" * (len(table.header) - table.names)
    lines = [" & ".join(map(escape, row)) + r" \\" for row in (table.header, *table.rows)]
    parts.append("\n".join([
        _comment(f"{table.title}. {table.note}"), rf"\begin{{tabular}}{{{columns}}}", r"\hline",
        lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]))
  return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
  """Escapes the special characters of LaTeX."""
  return "".join(_TEX.get(character, character) for character in text)


def signed(value: float, digits: int = 3) -> str:
  """Formats a difference with its sign, using a typographic minus."""
  if value != value:
    return NO_VALUE
  text = f"{value:+.{digits}f}"
  return text.replace("-", "−")


def number(value: float | None, digits: int = 3) -> str:
  """Formats a number with a typographic minus, none before a zero; `NO_VALUE` for None and nan."""
  if value is None or value != value:
    return NO_VALUE
  return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _comment(text: str) -> str:
  return "\n".join(f"% {line}".rstrip() for line in text.strip().splitlines())
