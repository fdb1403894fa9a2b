"""Renders the parts of the page as HTML. All external texts are escaped here."""

from collections.abc import Mapping
from collections.abc import Sequence
from html import escape
import math

from condseg_jax.classes import ClassTable
from condseg_jax.infer.prediction import rating
from condseg_jax.metrics import METRICS
from condseg_jax.report import markup
from condseg_jax.report import tables
from condseg_jax.report.page import plots
from condseg_jax.report.page import slices
from condseg_jax.report.page.case import Case

# Measure → heading, decimals. Other measures are shown under their own names.
_HEADINGS = {
    "dice": ("Dice", 3), "iou": ("IoU", 3), "hd95": ("HD95, {mm}", 1),
    "surface_dice": ("surface Dice", 3), "volume_ml": ("volume, ml", 1),
    "truth_volume_ml": ("true volume, ml", 1), "area_px": ("area, px", 0),
    "truth_area_px": ("true area, px", 0), "mean": ("mean intensity", 1),
    "sd": ("sd of intensity", 1), "touches_border": ("cut by the border", 0),
    "confidence": ("confidence", 2), "soft_dice": ("soft Dice confidence", 2),
    "member_dice": ("Dice of the members", 2),
    "predicted_dice": ("predicted Dice", 2), "dice_bound": ("its 90 % lower bound", 2),
}
_HIDDEN = ("voxels",)  # measures that are not shown
_FEW, _MANY = 8, 24  # structures up to which the list and the table are open


def swatch(table: ClassTable, name: str) -> str:
  """Renders a class as its colour and name."""
  return (f'<span class="label"><span class="swatch k{table.index(name)}"></span>{escape(name)}'
          "</span>")


def cell(value: float | bool | str | None, digits: int | None = None, after: str = "") -> str:
  """Renders a table cell.

  Args:
    value: number, bool or text; None and nan have no value and are sorted last.
    digits: decimals; 4 significant digits when None.
    after: HTML to append to a number.
  """
  if value is None or isinstance(value, float) and math.isnan(value):
    return f'<td class="number" data-value="">{markup.NO_VALUE}</td>'
  if isinstance(value, bool):
    style = "" if value else ' class="nothing"'
    return f'<td{style} data-value="{int(value)}">{"yes" if value else "no"}</td>'
  if isinstance(value, str):
    return f'<td data-value="{escape(value)}">{escape(value)}</td>'
  text = f"{value:.4g}" if digits is None else f"{value:.{digits}f}"
  style = "number" if value else "number nothing"
  return f'<td class="{style}" data-value="{float(value)!r}">{text}{after}</td>'


def light(value: float | bool | str | None) -> str:
  """Renders a predicted Dice as a traffic light; "" without a value."""
  if not isinstance(value, int | float) or math.isnan(value):
    return ""
  word = rating(value)
  return f'<span class="light {word}" role="img" aria-label="{word}" title="{word}"></span>'


def table_of(head: Sequence[str], rows: Sequence[str], style: str, caption: str) -> str:
  """Renders a table that scrolls horizontally.

  Args:
    head: contents of the heading cells, HTML.
    rows: `tr` elements.
    style: CSS class; "sortable" turns the headings into buttons.
    caption: for screen readers; escaped here.
  """
  headings = "".join(f'<th scope="col">{h}</th>' for h in head)
  return (f'<div class="scroll"><table class="{style}"><caption>{escape(caption)}</caption>'
          f"<thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def measures_of(cases: Sequence[Case]) -> list[str]:
  """Returns the measures that any structure of any case has, those with a heading first.

  Lists such as a centroid are omitted: the viewer shows the position of a structure.
  """
  items = [item for case in cases for values in case.measures.values() for item in values.items()]
  lists = {key for key, value in items if isinstance(value, list | tuple | dict)}
  keys = {key for key, _ in items} - lists - set(_HIDDEN)
  return [*(key for key in _HEADINGS if key in keys), *sorted(keys - set(_HEADINGS))]


def heading(key: str, flat: bool) -> str:
  """Returns the heading of a measure; `flat`: 2-D images, whose distances are in pixels."""
  if key in METRICS and key not in _HEADINGS:
    metric = METRICS[key]
    return ", ".join(filter(None, (metric.title, tables.unit_of(metric, flat))))
  text, _ = _HEADINGS.get(key, (key.replace("_", " "), None))
  return text.format(mm="px" if flat else "mm")


def digits(key: str) -> int | None:
  """Returns the decimals of a measure; None if it has no fixed format."""
  own = METRICS[key].digits if key in METRICS else None
  return _HEADINGS.get(key, ("", own))[1]


def is_flat(cases: Sequence[Case]) -> bool:
  """Whether the cases are 2-D images."""
  return any("area_px" in values for case in cases for values in case.measures.values())


def summary_table(summary: Mapping, cases: Sequence[Case], table: ClassTable,
                  links: Sequence[tuple[str, str]]) -> str:
  """Renders the scores per class over all cases, with their distributions.

  Args:
    summary: from `scores.summarise`.
    cases: for the distributions.
    table: for the colours.
    links: address and name of each case.
  """
  flat = summary["size_unit"] == "px"
  dices = {name: [float(case.measures.get(name, {}).get("dice", math.nan)) for case in cases]
           for name in summary["classes"]}
  low = plots.lower_end(dice for values in dices.values() for dice in values)
  others = tables.columns(summary)
  own = {key: m for key, m in others.items() if key != "iou"}
  head = ["structure", "Dice [95 % interval]", f"Dice per case{plots.axis(low)}", "IoU",
          *(["pooled IoU"] if flat else []),
          *(", ".join(filter(None, (escape(m.title), tables.unit_of(m, flat))))
            for m in own.values()), "cases"]
  rows = []
  for name, entry in summary["classes"].items():
    rows.append(
        f'<tr><th scope="row">{swatch(table, name)}</th><td>{tables.interval(entry["dice"])}</td>'
        f"<td>{plots.box_plot(dices[name], links, f'k{table.index(name)}', low)}</td>"
        + _plain(entry["iou"]["mean"]) + (_plain(entry["pooled_iou"]) if flat else "")
        + "".join(_plain(entry[key]["mean"], m.digits) for key, m in own.items())
        + f'<td class="number">{entry["dice"]["n"]}</td></tr>')
  rows.append(
      f'<tr class="mean"><th scope="row">mean</th><td>{markup.number(summary["mean_dice"])}</td>'
      f"<td>{plots.box_plot([case.dice for case in cases], links, 'all', low)}</td>"
      + _plain(summary["mean_iou"]) + (_plain(summary["mean_pooled_iou"]) if flat else "")
      + "<td></td>" * len(own) + f'<td class="number">{summary["n_cases"]}</td></tr>')
  notes = [f"{name}: {remark}" for name, entry in summary["classes"].items()
           for remark in tables.remarks(entry, summary["size_unit"])]
  items = "".join(f"<li>{escape(note)}</li>" for note in notes)
  return (table_of(head, rows, "scores", "Scores of each structure over all cases")
          + (f'<ul class="remarks">{items}</ul>' if items else ""))


def cases_table(cases: Sequence[Case], table: ClassTable, names: Sequence[str],
                chips: Sequence[Sequence[str]]) -> str:
  """Renders one row per case with the Dice, or the size, of each structure.

  Cases with a predicted Dice come first, the worst at the top.

  Args:
    cases: all cases.
    table: for the colours.
    names: of the structures.
    chips: per case, words that mark it, such as "best".
  """
  scored = any("dice" in values for case in cases for values in case.measures.values())
  key = "dice" if scored else "area_px" if is_flat(cases) else "volume_ml"
  judged = not scored and not all(math.isnan(case.predicted) for case in cases)
  head = ["case", "remarks", *(["mean Dice"] if scored else []),
          *(["lowest predicted Dice"] if judged else []),
          *(swatch(table, name) for name in names)]
  rows = []
  numbered = list(enumerate(zip(cases, chips, strict=True), 1))
  if judged:
    numbered.sort(key=lambda item: _unknown_last(item[1][0].predicted))
  for number, (case, marks) in numbered:
    cells = []
    if judged:
      cells.append(cell(case.predicted, 2, light(case.predicted)))
    if scored:
      cells.append(cell(case.dice, 3, plots.bar(case.dice, "all")))
    for name in names:
      value = case.measures.get(name, {}).get(key)
      has_bar = scored and value is not None
      cells.append(cell(value, digits(key),
                        plots.bar(float(value), f"k{table.index(name)}") if has_bar else ""))
    words = [*marks, *(["failed"] if case.failure else []),
             *([_count(len(case.warnings), "warning")] if case.warnings else [])]
    remarks = "".join(chip(word) for word in words)
    rows.append(f'<tr><th scope="row" data-value="{number}"><a href="#case-{number}">'
                f'{escape(case.name)}</a></th><td data-value="{len(words) or ""}">{remarks}</td>'
                f"{''.join(cells)}</tr>")
  measure = "Dice" if scored else heading(key, is_flat(cases))
  return table_of(head, rows, "cases sortable", f"{measure} of each structure in each case")


def chip(word: str) -> str:
  """Renders a word that marks a case."""
  alarm = " alarm" if word == "failed" or "warning" in word else ""
  return f'<span class="chip{alarm}">{escape(word)}</span>'


def case_article(number: int, case: Case, table: ClassTable, keys: Sequence[str], flat: bool,
                 marks: Sequence[str], viewer: bool) -> str:
  """Renders one case: slices, warnings, viewer button and structures.

  Args:
    number: of the case, from 1.
    case: the case.
    table: for the colours.
    keys: measures to show.
    flat: 2-D images, whose lengths are in pixels.
    marks: words that mark the case.
    viewer: whether the page has a viewer.
  """
  has_dice = not math.isnan(case.dice)
  score = f'<span class="score">mean Dice {case.dice:.3f}</span>' if has_dice else ""
  head = (f'<header><h3>{escape(case.name)}</h3>{score}{"".join(chip(word) for word in marks)}'
          f'<span class="facts">{escape(case.facts)}</span></header>')
  lines = [f"Failed: {case.failure}"] if case.failure else list(case.warnings)
  items = "".join(f"<li>{escape(line)}</li>" for line in lines)
  body = [head, f'<ul class="warnings">{items}</ul>' if items else ""]
  if case.slices:
    body.append(f'<div class="slices">{"".join(case.slices)}</div>')
  if case.scan and viewer:
    body.append('<p class="js"><button type="button" class="open">Open in the viewer (3-D)</button>'
                '</p><div class="place"></div>')
  elif case.no_scan and viewer:
    body.append(f'<p class="facts">{escape(case.no_scan)}</p>')
  if case.measures:
    body.append(_structures(case, table, keys, flat, viewer))
  return f'<article class="case" id="case-{number}">{"".join(body)}</article>'


def _structures(case, table, keys, flat, viewer) -> str:
  centres = case.scan.centres if case.scan and viewer else {}
  rows = []
  for name, values in sorted(case.measures.items(),
                             key=lambda item: _unknown_last(item[1].get("predicted_dice"))):
    cells = "".join(cell(values.get(key), digits(key),
                         light(values.get(key)) if key == "predicted_dice" else "")
                    for key in keys)
    show_cell = ""
    if centres:
      mm = " ".join(f"{x:g}" for x in centres.get(name, ()))
      button = (f'<button type="button" class="go" data-mm="{mm}" aria-label="show '
                f'{escape(name)}">show</button>')
      show_cell = f'<td class="js">{button if mm else ""}</td>'
    rows.append(f'<tr><th scope="row">{swatch(table, name)}</th>{cells}{show_cell}</tr>')
  head = ["structure", *(escape(heading(key, flat)) for key in keys)]
  table_html = table_of(head + ([""] if centres else []), rows, "structures",
                        f"Structures of {case.name}")
  if len(rows) <= _MANY:
    return table_html
  return f"<details><summary>{len(rows)} structures</summary>{table_html}</details>"


def toolbar(table: ClassTable, names: Sequence[str], scored: bool) -> str:
  """Renders the controls of the slices: the layer and the structures to show."""
  modes = [("prediction", "prediction" + (" (white: outline of the truth)" if scored else ""))]
  if scored:
    modes += [("truth", "truth"), ("errors", "errors")]
  modes.append(("image", "image only"))
  radios = "".join(
      f'<label><input type="radio" name="show" value="{value}"'
      f'{" checked" if value == "prediction" else ""}>{escape(text)}</label>'
      for value, text in modes)
  boxes = "".join(f'<label><input type="checkbox" name="structure" value="{table.index(name)}" '
                  f"checked>{swatch(table, name)}</label>" for name in names)
  keys = "".join(
      f'<span class="label"><span class="swatch {slices.ERROR_STYLES[value]}"></span>'
      f"{escape(text)}</span>" for value, text in slices.ERRORS.items())
  legend = f'<div class="legend">{keys}</div>' if scored else ""
  return (f'<div class="toolbar js"><fieldset><legend>Slices show</legend>{radios}</fieldset>'
          f"<details{' open' if len(names) <= _FEW else ''}><summary>Structures ({len(names)})"
          f'</summary><div class="boxes">{boxes}</div></details>{legend}</div>')


def _unknown_last(value) -> float:
  """Sort key: ascending, and in the given order where there is no value."""
  return math.inf if value is None or math.isnan(value) else value


def _plain(value: float, places: int = 3) -> str:
  return f'<td class="number">{markup.number(value, places)}</td>'


def _count(n: int, noun: str) -> str:
  return f"{n} {noun}" + ("" if n == 1 else "s")
