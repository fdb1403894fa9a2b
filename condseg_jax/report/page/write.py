"""Writes the report page: one HTML file that can be opened offline."""

import base64
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import gzip
import hashlib
from html import escape
from importlib import resources
import json
import math
import os

import condseg_jax
from condseg_jax.classes import ClassTable
from condseg_jax.report.page import parts
from condseg_jax.report.page import viewer
from condseg_jax.report.page.case import Case
from condseg_jax.system.atomic import replacing

DISCLAIMER = "For research use only. Not a medical device, not for diagnosis."


def write_page(path: str | os.PathLike, cases: Sequence[Case], table: ClassTable, *, title: str,
               facts: Mapping[str, str], summary: Mapping | None = None) -> str:
  """Writes the page.

  Args:
    path: file to write.
    cases: in display order.
    table: names and colours of the classes.
    title: heading.
    facts: lines below it, name → text.
    summary: from `scores.summarise`; None if the cases were not scored.

  Returns:
    One line about a missing viewer, else "".

  Raises:
    InputError: the file cannot be written.
  """
  has_scans = any(case.scan for case in cases)
  code = viewer.code() if has_scans else None
  note = f"the viewer is not installed, {viewer.HOW}" if has_scans and code is None else ""
  with replacing(path) as temporary:
    with temporary.open("w", encoding="utf-8") as file:
      for html in _html(cases, table, title, facts, summary, code, note):
        file.write(html)
  return note


def _html(cases, table, title, facts, summary, code, note) -> Iterator[str]:
  """Yields the page piece by piece, as it may be hundreds of MB long."""
  names = [n for n in table.names if any(n in case.measures for case in cases)]
  style = _file("page.css") + _colours(table, names)
  script = _file("page.js")
  trusted = [_hash(script)] + ([_hash(code)] if code else [])
  policy = (f"default-src 'none'; script-src {' '.join(trusted)}; style-src {_hash(style)}; "
            "img-src data:; base-uri 'none'; form-action 'none'")
  yield ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
         f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
         '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
         '<meta name="referrer" content="no-referrer"><meta name="color-scheme" '
         f'content="light dark">\n<title>{escape(title)}</title>\n<style>{style}</style></head>\n'
         '<body data-show="prediction">\n')
  facts = {**facts, "program": f"condseg_jax {condseg_jax.__version__}"}
  entries = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>"
                    for key, text in facts.items())
  yield f'<header class="top"><h1>{escape(title)}</h1><dl>{entries}</dl></header>\n<main>\n'
  yield from _overview(cases, table, names, summary)
  scored = any("dice" in values for case in cases for values in case.measures.values())
  if names:
    yield parts.toolbar(table, names, scored) + "\n"
  if note:
    yield f'<p class="facts">No interactive views: {escape(note)}</p>\n'
  keys, flat, marks = parts.measures_of(cases), parts.is_flat(cases), _marks(cases)
  yield '<section aria-label="cases">\n'
  for number, case in enumerate(cases, 1):
    yield parts.case_article(number, case, table, keys, flat, marks[number - 1],
                             code is not None) + "\n"
  yield f"</section>\n</main>\n<footer><p>{DISCLAIMER}</p>"
  if code:
    yield (f"<details><summary>Viewer: NiiVue {viewer.VERSION}, BSD-2-Clause, © the NiiVue authors"
           f"</summary><pre>{escape(viewer.licenses())}</pre></details>")
  yield "</footer>\n"
  if code:
    yield _file("viewer.html")
    yield _data("viewer-code", base64.b64encode(gzip.compress(code.encode(), 9, mtime=0)).decode())
    for number, case in enumerate(cases, 1):
      if case.scan:
        yield from _scan(number, case.scan, table)
  yield f"<script>{script}</script>\n</body></html>\n"


def _overview(cases, table, names, summary) -> Iterator[str]:
  """Yields the overview: scores, best and worst case, table of all cases."""
  marks = _marks(cases)
  yield '<section aria-label="overview">\n'
  if summary:
    links = [(f"#case-{number}", case.name) for number, case in enumerate(cases, 1)]
    yield f"<h2>Scores</h2>{parts.summary_table(summary, cases, table, links)}\n"
    ranked = [(word, number) for number, words in enumerate(marks, 1) for word in words]
    extremes = " · ".join(
        f'{escape(word)}: <a href="#case-{number}">{escape(cases[number - 1].name)}</a> '
        f"({cases[number - 1].dice:.3f})" for word, number in sorted(ranked))
    yield f'<p class="extremes">{extremes}</p>\n' if extremes else ""
  yield f"<h2>Cases</h2>{parts.cases_table(cases, table, names, marks)}</section>\n"


def _marks(cases: Sequence[Case]) -> list[list[str]]:
  """Marks the "best", "median" and "worst" case by mean Dice, if at least three cases have one."""
  ranking = sorted((case.dice, number) for number, case in enumerate(cases)
                   if not math.isnan(case.dice))
  marks = [[] for _ in cases]
  if len(ranking) > 2:
    for word, place in (("best", -1), ("median", (len(ranking) - 1) // 2), ("worst", 0)):
      marks[ranking[place][1]].append(word)
  return marks


def _scan(number, scan, table) -> Iterator[str]:
  """Yields the data elements of one scan for the viewer."""
  colours = [table.colors[table.index(name)] for name in scan.classes]
  meta = {"classes": scan.classes, "ids": [table.index(name) for name in scan.classes],
          "colours": colours,
          "labels": list(scan.labels), "focus": scan.focus}
  # Only "<" could end a script element.
  yield _data(f"scan-{number}", json.dumps(meta).replace("<", "\\u003c"), "application/json")
  yield _data(f"scan-{number}-image", scan.image)
  for name, text in scan.labels.items():
    yield _data(f"scan-{number}-{name}", text)


def _data(name: str, text: str, media_type: str = "application/octet-stream") -> str:
  """Renders a script element with data, which the browser does not run."""
  return f'<script type="{media_type}" id="{name}">{text}</script>\n'


def _colours(table: ClassTable, names: Sequence[str]) -> str:
  """Renders the style rules of the classes."""
  ids = [table.index(name) for name in names]
  rules = [f".k{i}{{--c:rgb({','.join(map(str, table.colors[i]))})}}"
           f".off-{i} .slice .k{i}{{display:none}}" for i in ids]
  return "".join(rules)


def _file(name: str) -> str:
  return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
  """Returns the source expression of a script or style in the content security policy."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
