"""Figures of a study, from its records: curves, box plots, levels, scanners, confusions."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from pathlib import Path

import numpy as np

from condseg_jax.evaluate.bootstrap import interval
from condseg_jax.evaluate.bootstrap import mean_of_known
from condseg_jax.report import markup
from condseg_jax.study.report import confusion_shares
from condseg_jax.study.report import Outcome
from condseg_jax.study.report import scanner_scores
from condseg_jax.study.report import score_name
from condseg_jax.system.atomic import replacing

# Okabe & Ito's colour-blind-safe palette; then the same colours again, dashed.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
LINES = ("-", "--", ":")
_PANEL = 3.0  # inches


def write(folder: Path, study: str, found: Outcome) -> list[Path]:
  """Draws all figures that the records have data for; returns their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  drawn = {"curves": draw_curves(found), "box": draw_boxes(found)}
  if any(row["level"] is not None for row in found.first.values()):
    drawn["levels"] = draw_levels(found)
  if any(found.rows[0]["scores"]["groups"]):
    drawn |= {"scanners": draw_scanners(found), "confusion": draw_confusions(found)}
  paths = []
  for name, figure in drawn.items():
    paths.append(folder / f"{study}_{name}.png")
    save(paths[-1], figure)
  return paths


def save(path: Path, figure) -> None:
  """Writes a figure atomically."""
  with replacing(path) as temporary:
    figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata={"Software": None})


def curve_of(record: Mapping) -> tuple[np.ndarray, np.ndarray]:
  """Returns updates, summed over members, and training soft Dice, averaged over classes.

  Members train one after the other but are drawn as if they trained in parallel.
  """
  curves = record["curves"]
  size = min(len(c["step"]) for c in curves)
  steps = len(curves) * np.array(curves[0]["step"][:size], np.float64)
  values = [line[:size] for c in curves for line in c["dice"].values()]
  return steps, mean_of_known(np.array(values, np.float64), 0)


def smoothed(values: np.ndarray, width: int = 5) -> np.ndarray:
  """Returns running means over `width` points, fewer at the ends."""
  half = width // 2
  return np.array([mean_of_known(values[max(0, i - half):i + half + 1])
                   for i in range(len(values))])


def draw_curves(found: Outcome):
  """Draws the soft Dice of the training batches; the band spans minimum to maximum over seeds.

  The Dice is measured against the training labels, which differ from the truth where a variant
  treats unlabelled voxels as background. Variants that grow or are federated have none.
  """
  labels = [label for label, row in found.first.items() if row["curves"]]
  figure, axes = _figure(1.3 * _PANEL + _legend_width(labels), 1.3 * _PANEL)
  for number, label in enumerate(labels):
    lines = [curve_of(row) for row in found.rows if row["label"] == label]
    size = min(len(steps) for steps, _ in lines)
    steps, values = lines[0][0][:size], np.stack([smoothed(v[:size]) for _, v in lines])
    style = _style(number)
    axes.plot(steps, mean_of_known(values, 0), **style, lw=1.5, label=label)
    if len(lines) > 1:
      low, high = np.fmin.reduce(values), np.fmax.reduce(values)
      axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, lw=0)
  axes.set(xlabel="updates, of all networks of a variant",
           ylabel="soft Dice in training,\nagainst the labels it is given",
           ylim=(0, 1), xlim=(0, None))
  _legend(axes, len(labels))
  return figure


def draw_boxes(found: Outcome):
  """Draws box plots of Dice over cases and seeds, by variant; one panel per class."""
  labels, classes = list(found.first), found.classes
  columns = min(len(classes), 4)
  rows = math.ceil(len(classes) / columns)
  figure, panels = _figure(max(_PANEL, 0.9 + 0.28 * len(labels)) * columns, 1.15 * _PANEL * rows,
                           rows, columns)
  panels = np.atleast_1d(panels).ravel()
  values = {name: [case_scores(found, label, name) for label in labels] for name in classes}
  least = min((v.min() for one in values.values() for v in one if v.size), default=0)
  for k, (name, axes) in enumerate(zip(classes, panels, strict=False)):
    boxes = axes.boxplot(values[name], widths=0.6, patch_artist=True,
                         medianprops={"color": "black"}, flierprops={"markersize": 2.5})
    for number, box in enumerate(boxes["boxes"]):
      box.set(facecolor=_style(number)["color"], alpha=0.55)
    axes.set(title=name, ylim=(math.floor(10 * least) / 10 - 0.02, 1.02))
    axes.grid(axis="y", alpha=0.25)
    last = k // columns == rows - 1
    axes.set_xticks(range(1, len(labels) + 1), labels if last else [""] * len(labels), rotation=90,
                    fontsize=8)
    if k % columns == 0:
      axes.set_ylabel("Dice of a case")
  for axes in panels[len(classes):]:
    axes.axis("off")
  return figure


def case_scores(found: Outcome, label: str, name: str) -> np.ndarray:
  """Returns the defined Dice of a class per case, seeds of the variant concatenated."""
  mine = [np.array(row["scores"]["dice"], np.float64)[:, row["scores"]["classes"].index(name)]
          for row in found.rows if row["label"] == label]
  together = np.concatenate(mine)
  return together[~np.isnan(together)]


def draw_levels(found: Outcome):
  """Draws the mean over classes by level with bootstrap intervals, and thin lines per class."""
  lines: dict[str, list[str]] = {}
  for label, row in found.first.items():
    if row["level"] is not None:
      lines.setdefault(row["variant"], []).append(label)
  figure, axes = _figure(1.1 * _PANEL + _legend_width(list(lines)), 1.2 * _PANEL)
  for number, (variant, labels) in enumerate(lines.items()):
    labels = sorted(labels, key=lambda label: found.first[label]["level"])
    x = [found.first[label]["level"] for label in labels]
    points = np.array([found.points[label] for label in labels])
    spans = np.array([interval(found.drawn[label][:, -1]) for label in labels])
    style = _style(number)
    axes.errorbar(x, points[:, -1], np.abs(spans - points[:, -1:]).T, **style, capsize=3,
                  marker="o", ms=4, lw=1.6, label=variant)
    axes.plot(x, points[:, :-1], color=style["color"], lw=0.6, alpha=0.5)
  row = found.rows[0]
  axes.set(xlabel=row["level_name"], ylabel=f"{score_name(row)} (thin: of each class)")
  levels = sorted({r["level"] for r in found.first.values() if r["level"] is not None})
  if min(levels) > 0 and max(levels) > 8 * min(levels):
    axes.set_xscale("log")
    axes.minorticks_off()
  axes.set_xticks(levels, [f"{level:g}" for level in levels])
  _legend(axes, len(lines))
  return figure


def draw_scanners(found: Outcome):
  """Draws Dice by class and scanner, one panel per variant."""
  def draw(label):
    scanners, values = scanner_scores(found, label)
    return values, found.classes, scanners
  return _matrices(found, draw, "scanner of", "class", "Dice")


def draw_confusions(found: Outcome):
  """Draws the confusion matrices, one panel per variant."""
  names = [*found.classes, "none"]

  def draw(label):
    return confusion_shares(found, label), names, names
  return _matrices(found, draw, "given to", "truth", "share of every true class")


def _matrices(found: Outcome, draw, xlabel: str, ylabel: str, what: str):
  labels = list(found.first)
  columns = min(len(labels), 5)
  rows = math.ceil(len(labels) / columns)
  size = 0.75 + 0.42 * (len(found.classes) + 1)
  figure, panels = _figure(size * columns, (size + 0.25) * rows, rows, columns)
  panels = np.atleast_1d(panels).ravel()
  for number, (axes, label) in enumerate(zip(panels, labels, strict=False)):
    values, down, across = draw(label)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(values):
      axes.text(x, y, markup.number(value, 2), ha="center", va="center", fontsize=7,
                color="white" if value > 0.6 else "black")
    axes.set_title(label, fontsize=9)
    below, left = number + columns >= len(labels), number % columns == 0
    axes.set_xticks(range(len(across)), across if below else [""] * len(across), rotation=60,
                    ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(down)), down if left else [""] * len(down), fontsize=8)
    axes.tick_params(length=0)
    if left:
      axes.set_ylabel(ylabel)
    if below:
      axes.set_xlabel(xlabel)
  for axes in panels[len(labels):]:
    axes.axis("off")
  figure.suptitle(what, fontsize=10)
  return figure


def _style(number: int) -> dict:
  return {"color": COLORS[number % len(COLORS)],
          "linestyle": LINES[number // len(COLORS) % len(LINES)]}


def _legend(axes, entries: int) -> None:
  axes.grid(alpha=0.25)
  axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5),
              ncols=_legend_columns(entries))


def _legend_columns(entries: int) -> int:
  return 1 if entries <= 14 else 2


def _legend_width(labels: Sequence[str]) -> float:
  """Returns the legend's width in inches, by which a figure grows so its axes keep their size."""
  return (0.6 + 0.07 * max(map(len, labels))) * _legend_columns(len(labels))


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
  from matplotlib.figure import Figure  # heavy, and needed for figures only

  figure = Figure(figsize=(width, height), layout="constrained")
  return figure, figure.subplots(rows, columns)
