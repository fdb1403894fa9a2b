"""The whole page: one HTML file that opens from a disk and asks the network for nothing."""

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

NOT_FOR_CARE = "Made by a research program. Not a medical device, not for diagnosis."


def write_page(path: str | os.PathLike, cases: Sequence[Case], table: ClassTable, *, title: str,
               facts: Mapping[str, str], summary: Mapping | None = None) -> str:
  """Writes the page.

  Args:
    path: file to write.
    cases: in the order in which they are shown.
    table: names and colours of the classes.
    title: heading.
    facts: lines below it, name → text.
    summary: what `scores.summarise` returns, where the cases were scored.

  Returns:
    What a user should know of the page: empty, or one line about the viewer.

  Raises:
    InputError: the file cannot be written.
  """
  wanted = any(case.scan for case in cases)
  code = viewer.code() if wanted else None
  without = f"the viewer is not at hand: {viewer.HOW}" if wanted and code is None else ""
  with replacing(path) as temporary:
    with temporary.open("w", encoding="utf-8") as file:
      for part in _parts(cases, table, title, facts, summary, code, without):
        file.write(part)
  return without


def _parts(cases, table, title, facts, summary, code, without) -> Iterator[str]:
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
  told = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>"
                 for key, text in facts.items())
  yield f'<header class="top"><h1>{escape(title)}</h1><dl>{told}</dl></header>\n<main>\n'
  yield from _overview(cases, table, names, summary)
  scored = any("dice" in values for case in cases for values in case.measures.values())
  if names:
    yield parts.toolbar(table, names, scored) + "\n"
  if without:
    yield f'<p class="facts">Without interactive views: {escape(without)}.</p>\n'
  keys, flat, marks = parts.measures_of(cases), parts.is_flat(cases), _marks(cases)
  yield '<section aria-label="cases">\n'
  for number, case in enumerate(cases, 1):
    yield parts.case_article(number, case, table, keys, flat, marks[number - 1],
                             code is not None) + "\n"
  yield f'</section>\n</main>\n<footer><p>{NOT_FOR_CARE}'
  yield (f" Viewer: NiiVue {viewer.VERSION}, BSD-2-Clause, © the NiiVue authors." if code else "")
  yield "</p></footer>\n"
  if code:
    yield _file("viewer.html")
    yield _data("viewer-code", base64.b64encode(gzip.compress(code.encode(), 9, mtime=0)).decode())
    for number, case in enumerate(cases, 1):
      if case.scan:
        yield from _scan(number, case.scan, table)
  yield f"<script>{script}</script>\n</body></html>\n"


def _overview(cases, table, names, summary) -> Iterator[str]:
  """What is to be seen at a glance: scores, best and worst, all cases in a table."""
  marks = _marks(cases)
  yield '<section aria-label="overview">\n'
  if summary:
    links = [(f"#case-{number}", case.name) for number, case in enumerate(cases, 1)]
    yield f"<h2>Scores</h2>{parts.summary_table(summary, cases, table, links)}\n"
    ranked = [(word, number) for number, words in enumerate(marks, 1) for word in words]
    told = " · ".join(
        f'{escape(word)}: <a href="#case-{number}">{escape(cases[number - 1].name)}</a> '
        f"({cases[number - 1].dice:.3f})" for word, number in sorted(ranked))
    yield f'<p class="extremes">{told}</p>\n' if told else ""
  yield f"<h2>Cases</h2>{parts.cases_table(cases, table, names, marks)}</section>\n"


def _marks(cases: Sequence[Case]) -> list[list[str]]:
  """"best", "median" and "worst" by mean Dice, where at least three cases have one."""
  ranking = sorted((case.dice, number) for number, case in enumerate(cases)
                   if not math.isnan(case.dice))
  marks = [[] for _ in cases]
  if len(ranking) > 2:
    for word, place in (("best", -1), ("median", (len(ranking) - 1) // 2), ("worst", 0)):
      marks[ranking[place][1]].append(word)
  return marks


def _scan(number, scan, table) -> Iterator[str]:
  colours = [table.colors[table.index(name)] for name in scan.classes]
  about = {"classes": scan.classes, "ids": [table.index(name) for name in scan.classes],
           "colours": colours,
           "labels": list(scan.labels), "focus": scan.focus}
  # In a script element only this sign could end it.
  yield _data(f"scan-{number}", json.dumps(about).replace("<", "\\u003c"), "application/json")
  yield _data(f"scan-{number}-image", scan.image)
  for name, text in scan.labels.items():
    yield _data(f"scan-{number}-{name}", text)


def _data(name: str, text: str, kind: str = "application/octet-stream") -> str:
  """Data that the browser keeps and does not run."""
  return f'<script type="{kind}" id="{name}">{text}</script>\n'


def _colours(table: ClassTable, names: Sequence[str]) -> str:
  ids = [table.index(name) for name in names]
  rules = [f".k{i}{{--c:rgb({','.join(map(str, table.colors[i]))})}}"
           f".off-{i} .slice .k{i}{{display:none}}" for i in ids]
  return "".join(rules)


def _file(name: str) -> str:
  return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
  """A script or style as the policy names it."""
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
