"""Writes scores as files (summary.json, cases.csv) and as a table for the terminal."""

from collections.abc import Iterable
from collections.abc import Mapping
import csv
import io
import json
import math
import os

from condseg_jax.errors import printable
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.metrics import Metric
from condseg_jax.metrics import METRICS
from condseg_jax.report.markup import NO_VALUE
from condseg_jax.report.markup import number
from condseg_jax.system.atomic import write_text


def write_summary(path: str | os.PathLike, summary: Mapping) -> None:
  """Writes a summary as JSON; nan becomes null."""
  text = json.dumps(_without_nan(summary), indent=2, ensure_ascii=False, allow_nan=False)
  write_text(path, text + "\n")


def write_cases(path: str | os.PathLike, rows: Iterable[CaseScore]) -> None:
  """Writes one line per case and class as CSV; nan becomes an empty cell."""
  rows = list(rows)
  keys = list(dict.fromkeys(key for row in rows for key in row.metrics))
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["case", "class", *keys])
  for row in rows:
    values = (row.metrics.get(key, math.nan) for key in keys)
    writer.writerow([printable(row.case), row.class_name,
                     *("" if math.isnan(value) else f"{value:.10g}" for value in values)])
  write_text(path, text.getvalue())


def format_table(summary: Mapping, *, distance_unit: str = "") -> str:
  """Formats a summary as aligned plain text: one line per class, then the mean over classes.

  Args:
    summary: from `scores.summarise`, or the content of summary.json.
    distance_unit: unit of HD95; mm for volumes and px for 2-D images when empty.
  """
  images = summary["size_unit"] == "px"
  others = columns(summary)
  header = ["class", "Dice [95 % CI]",
            *(f"{m.title} {unit_of(m, images, distance_unit)}".strip() for m in others.values()),
            "n"]
  lines = [[name, interval(entry["dice"]),
            *(number(entry[key]["mean"], m.digits) for key, m in others.items()),
            f"{entry['dice']['n']}"]
           for name, entry in summary["classes"].items()]
  mean = ["mean", number(summary["mean_dice"]),
          *(number(summary["mean_iou"]) if key == "iou" else "" for key in others),
          f"{summary['n_cases']}"]
  if images:
    header.insert(3, "pooled IoU")
    mean.insert(3, number(summary["mean_pooled_iou"]))
    for line, entry in zip(lines, summary["classes"].values(), strict=True):
      line.insert(3, number(entry["pooled_iou"]))
  widths = [max(map(len, column)) for column in zip(header, *lines, mean, strict=True)]
  rule = ["─" * width for width in widths]
  text = "\n".join(_aligned(line, widths) for line in [header, rule, *lines, rule, mean])
  notes = [f"{name}: {note}" for name, entry in summary["classes"].items() for note in remarks(
      entry, summary["size_unit"])]
  return "\n".join([text, *notes]) + "\n"


def columns(summary: Mapping) -> dict[str, Metric]:
  """Returns the metrics of a summary besides Dice, in the order of their columns."""
  entries = summary["classes"].values()
  return {key: m for key, m in METRICS.items()
          if key != "dice" and all(key in entry for entry in entries)}


def unit_of(metric: Metric, images: bool, distance_unit: str = "") -> str:
  """Returns the unit of a metric; distances of 2-D images are in pixels unless one is given."""
  if metric.unit != "mm":
    return metric.unit
  return distance_unit or ("px" if images else "mm")


def remarks(entry: Mapping, unit: str) -> Iterable[str]:
  """Lists what the means of a class leave out, which would otherwise flatter the result.

  Args:
    entry: of one class in a summary.
    unit: of sizes, "ml" or "px".
  """
  if entry["absent"]:
    volume = number(entry[f"false_positive_{unit}"]["mean"], 2)
    yield f"absent in {entry['absent']} case(s), {volume} {unit} predicted there on average"
  if entry["hd95"]["undefined"]:
    yield f"HD95 undefined in {entry['hd95']['undefined']} case(s)"
  if not entry["dice"]["n"]:
    yield "no case to score, excluded from the mean"


def interval(statistic: Mapping) -> str:
  """Formats a mean with its 95 % confidence interval."""
  if not statistic["n"]:
    return NO_VALUE
  lo, hi = statistic["ci95"]
  return f"{statistic['mean']:.3f} [{lo:.3f}, {hi:.3f}]"


def _aligned(cells: list[str], widths: list[int]) -> str:
  """Pads cells: names and Dice (whose mean has no interval) to the left, numbers to the right."""
  padded = [cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))]
  return "  ".join(padded).rstrip()


def _without_nan(value):
  if isinstance(value, Mapping):
    return {key: _without_nan(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_nan(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
