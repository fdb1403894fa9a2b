"""Curves of the measures over the depth of the networks."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np

from condseg_jax.system.atomic import replacing

if TYPE_CHECKING:
  from matplotlib.figure import Figure

INK, FAINT, RULE = "#1f2328", "#59636e", "#d1d9e0"
# Okabe & Ito's colours, which are safe for colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "os^Dv*"


class Line(NamedTuple):
  """A measure and its line style.

  Attributes:
    measure: key of `measures` in analysis.json.
    label: legend entry of the line style; none if empty.
    dashed: whether the line is dashed.
  """

  measure: str
  label: str = ""
  dashed: bool = False


class Panel(NamedTuple):
  """One plot of a figure.

  Attributes:
    title: above the plot.
    label: of the y axis.
    lines: drawn for each network: the mean over classes and runs, with a band from the smallest
      to the largest run.
    limits: of the y axis; automatic if None.
    log: whether the y axis is logarithmic.
    guide: value and label of a thin horizontal line, such as chance level.
  """

  title: str
  label: str
  lines: tuple[Line, ...]
  limits: tuple[float, float] | None = None
  log: bool = False
  guide: tuple[float, str] | None = None


def panels(study: Mapping) -> dict[str, tuple[Panel, ...]]:
  """Returns the panels of each figure by file name.

  Args:
    study: content of analysis.json.
  """
  counts = {len(n["classes"]) for runs in study["networks"].values() for n in runs}
  chance = (1 / max(counts), "chance") if len(counts) == 1 else None
  between = Line("gradient_cosine", "two classes, same image")
  within = Line("gradient_agreement", "one class, two images", True)
  at_init = [line._replace(measure=line.measure + "_init") for line in (between, within)]
  return {
      "class.png": (
          Panel("Linear probe for the requested class on pooled features", "accuracy",
                (Line("class_probe"),), (0, 1.05), guide=chance),
          Panel("Feature variance explained by the class", "share of variance",
                (Line("class_share"),), (0, 1.05))),
      "masks.png": (
          Panel("Linear probe for the mask of a class on voxel features", "Dice",
                (Line("mask_dice", "this class requested"),
                 Line("mask_dice_other", "another class requested", True)), (0, 1)),),
      "cka.png": (
          Panel("Similarity of the features under two classes", "linear CKA",
                (Line("cka"),), (0, 1.05)),),
      "gradient_norm.png": (
          Panel("Gradient norm of the loss of a class, trained", "norm",
                (Line("gradient_norm"),), log=True),
          Panel("at initialisation", "norm", (Line("gradient_norm_init"),), log=True)),
      "gradient_conflict.png": (
          Panel("Cosine between gradients, trained", "cosine", (between, within),
                (-1, 1), guide=(0, "")),
          Panel("at initialisation", "cosine", tuple(at_init), (-1, 1), guide=(0, ""))),
  }


def draw_curves(path: str | os.PathLike, study: Mapping, figure_panels: Sequence[Panel]) -> None:
  """Draws panels below each other, with the layers in network order on the x axis.

  Args:
    path: picture to write.
    study: content of analysis.json.
    figure_panels: of `panels`.
  """
  from matplotlib.figure import Figure  # slow to import, and only needed for figures

  networks = study["networks"]
  layers = [runs[0]["layers"] for runs in networks.values()]
  order = union([[layer["name"] for layer in of_network] for of_network in layers])
  parts = {layer["name"]: layer["part"] for of_network in layers for layer in of_network}
  styles = max((panel.lines for panel in figure_panels), key=len)
  longest = max(map(len, order))
  heights = [0.62, *[2.5] * len(figure_panels), max(0.0, 0.066 * longest - 0.25)]
  width, height = max(7.0, 2.2 + 0.27 * len(order)), sum(heights)
  figure = Figure(figsize=(width, height), facecolor="white")
  top = height - heights[0]
  for i, panel in enumerate(figure_panels):
    axes = figure.add_axes((0.75 / width, (top - 2.5 * i - 2.05) / height, 1 - 0.95 / width,
                            1.8 / height))
    _draw_panel(axes, panel, networks, order)
    _draw_parts(axes, [parts[name] for name in order])
    last = i == len(figure_panels) - 1
    axes.set_xticks(range(len(order)), order if last else [""] * len(order), rotation=90, size=8)
  _draw_legend(figure, list(networks), styles, height)
  save(path, figure)


def union(orders: Sequence[Sequence[str]]) -> list[str]:
  """Merges lists of layers; a new layer is inserted after its predecessor in its own list."""
  merged: list[str] = []
  for order in orders:
    position = 0
    for name in order:
      if name in merged:
        position = merged.index(name) + 1
      else:
        merged.insert(position, name)
        position += 1
  return merged


def mean_over_classes(table: Mapping[str, Sequence]) -> np.ndarray:
  """Averages the values of each layer over classes; NaN for layers without a value.

  Args:
    table: class → value or None for each layer.
  """
  columns = np.array([[math.nan if v is None else v for v in values] for values in table.values()])
  known = ~np.isnan(columns)
  return np.where(known.any(0), np.where(known, columns, 0).sum(0) / np.maximum(known.sum(0), 1),
                  math.nan)


def save(path: str | os.PathLike, figure: "Figure") -> None:
  """Writes a matplotlib figure atomically."""
  from matplotlib.text import Text

  for text in figure.findobj(Text):
    text.set_parse_math(False)  # names of classes and runs are not formulas
  with replacing(path) as temporary:
    figure.savefig(temporary, dpi=150, facecolor="white")


def color(number: int) -> str:
  """Returns the colour of a network by its number."""
  return COLORS[number % len(COLORS)]


def marker(number: int) -> str:
  """Returns the marker of a network; with the colour it is unique for up to 36 networks."""
  return MARKERS[(number + number // len(COLORS)) % len(MARKERS)]


def _draw_panel(axes, panel: Panel, networks: Mapping, order: Sequence[str]) -> None:
  from matplotlib import ticker

  for number, runs in enumerate(networks.values()):
    x = [order.index(layer["name"]) for layer in runs[0]["layers"]]
    for line in panel.lines:
      tables = [run["measures"].get(line.measure) for run in runs]
      if not all(tables):
        continue
      y = np.stack([mean_over_classes(table) for table in tables])
      if panel.log:
        y = np.where(y > 0, y, math.nan)
      if len(runs) > 1 and not line.dashed:
        axes.fill_between(x, y.min(0), y.max(0), color=color(number), alpha=0.18, linewidth=0)
      axes.plot(x, y.mean(0), color=color(number), linewidth=1.2 if line.dashed else 1.8,
                linestyle=(0, (3, 2)) if line.dashed else "-", clip_on=False, zorder=3,
                marker="" if line.dashed else marker(number), markersize=4)
  if panel.log:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  if panel.limits:
    axes.set_ylim(*panel.limits)
  if panel.guide:
    value, label = panel.guide
    axes.axhline(value, color=FAINT, linewidth=0.9, linestyle=":", zorder=2)
    if label:
      axes.text(len(order) - 0.55, value, label, color=FAINT, size=8, ha="right", va="bottom")
  axes.set_title(panel.title, loc="left", size=10, color=INK, pad=14)
  axes.set_ylabel(panel.label, size=9, color=INK)
  axes.set_xlim(-0.5, len(order) - 0.5)
  axes.grid(axis="y", color=RULE, linewidth=0.7)
  axes.set_axisbelow(True)
  axes.tick_params(colors=FAINT, labelsize=8, length=3)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(FAINT)


def _draw_parts(axes, parts: Sequence[str]) -> None:
  """Draws a line between encoder and decoder, and their names above the plot."""
  first = next((i for i, part in enumerate(parts) if part == "decoder"), len(parts))
  axes.axvline(first - 0.5, color=FAINT, linewidth=1)
  for centre, name in (((first - 1) / 2, "encoder"), ((first + len(parts) - 1) / 2, "decoder")):
    axes.text(centre, 1.015, name, transform=axes.get_xaxis_transform(), color=FAINT, size=8,
              ha="center", va="bottom")


def _draw_legend(figure, names: Sequence[str], styles: Sequence[Line], height: float) -> None:
  from matplotlib.lines import Line2D

  handles = [Line2D([], [], color=color(i), marker=marker(i), markersize=4, linewidth=1.8,
                    label=name) for i, name in enumerate(names)]
  handles += [Line2D([], [], color=FAINT, linestyle=(0, (3, 2)) if style.dashed else "-",
                     linewidth=1.4, label=style.label) for style in styles if style.label]
  figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, 1 - 0.04 / height),
                ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK, handlelength=2.2,
                columnspacing=1.4)
