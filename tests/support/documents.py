"""Blocks of code in the documents."""

from collections.abc import Iterator
from pathlib import Path
import re
import textwrap
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
_FENCE = re.compile(r"^ *```")
# The first word of an indented line that is a command and not prose.
_COMMAND = re.compile(r" {4,}(condseg-\w+|bash|python3?|pip|curl|git|make|mkdocs|docker) ")
SHELL, PYTHON = ("bash", "sh", "shell", "console"), ("python", "py")


class Block(NamedTuple):
  """A block of shell commands or of Python.

  Attributes:
    page: path of the document, relative to the repository.
    line: number of its first line.
    language: `bash` or `python`.
    text: without the indentation that all lines share.
  """

  page: str
  line: int
  language: str
  text: str


def pages() -> list[Path]:
  """Returns the documents whose blocks are accounted for."""
  named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RESULTS.md",
                                    "benchmarks/README.md")]
  return [*named, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, name: str = "") -> Iterator[Block]:
  """Yields the fenced blocks of shell and Python, and indented commands, in order."""
  lines = path.read_text(encoding="utf-8").splitlines()
  name = name or path.relative_to(ROOT).as_posix()
  number = 0
  while number < len(lines):
    line, first = lines[number], number + 1
    number += 1
    if _FENCE.match(line):
      language = line.strip(" `").split(" ")[0].lower()
      end = next((i for i in range(number, len(lines)) if _FENCE.match(lines[i])), None)
      if end is None:
        raise ValueError(f"{name}:{first}: a fence that is never closed")
      text = textwrap.dedent("\n".join(lines[number:end]))
      if language in SHELL or language in PYTHON:
        yield Block(name, first, "bash" if language in SHELL else "python", text)
      number = end + 1
    elif _COMMAND.match(line):
      while number < len(lines) and lines[number].startswith("    "):
        number += 1
      yield Block(name, first, "bash", textwrap.dedent("\n".join(lines[first - 1:number])))
