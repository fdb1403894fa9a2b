"""Figures of one network: grids of feature maps, and class vectors in the plane."""

from collections.abc import Mapping
import os
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np

from condseg_jax.analysis import curves
from condseg_jax.analysis.feature_maps import unpack
from condseg_jax.report.display import robust_window

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_PANEL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM = 1.15, 0.06, 0.95, 0.75, 0.78, 0.34  # inches


class _Grid(NamedTuple):
  """Layout of a figure with equal panels.

  Attributes:
    figure: the figure.
    rows: number of rows.
    columns: number of columns.
    tall: height of a panel in inches.
  """

  figure: "Figure"
  rows: int
  columns: int
  tall: float

  @classmethod
  def create(cls, rows: int, columns: int, ratio: float) -> "_Grid":
    """Makes an empty figure; `ratio` is the height of a panel divided by its width."""
    from matplotlib.figure import Figure  # slow to import, and only needed for figures

    tall = _PANEL * ratio
    size = (_LEFT + columns * (_PANEL + _GAP) + _RIGHT, _TOP + rows * (tall + _GAP) + _BOTTOM)
    return cls(Figure(figsize=size, facecolor="white"), rows, columns, tall)

  def left(self, column: int) -> float:
    """Returns the left edge of a column in inches."""
    return _LEFT + column * (_PANEL + _GAP)

  def low(self, row: int) -> float:
    """Returns the lower edge of a row in inches; row 0 is the uppermost."""
    return _BOTTOM + (self.rows - 1 - row) * (self.tall + _GAP)

  def axes(self, x: float, y: float, width: float) -> "Axes":
    """Adds axes of the height of a panel; lower left corner and width in inches."""
    total_width, total_height = self.figure.get_size_inches()
    return self.figure.add_axes((x / total_width, y / total_height, width / total_width,
                                 self.tall / total_height))

  def panel(self, column: int, row: int) -> "Axes":
    """Adds the axes of a panel, without ticks and frame."""
    axes = self.axes(self.left(column), self.low(row), _PANEL)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes

  def text(self, x: float, y: float, text: str, **style) -> None:
    """Writes text at a position in inches, by default in the colour of ink."""
    width, height = self.figure.get_size_inches()
    self.figure.text(x / width, y / height, text, **{"color": curves.INK, **style})

  def heading(self, column: int, text: str) -> None:
    """Writes text above a column."""
    y = self.figure.get_size_inches()[1] - _TOP + 0.08
    self.text(self.left(column) + _PANEL / 2, y, text, size=8, ha="center", va="bottom",
              linespacing=1.1)

  def row_name(self, row: int, text: str, color: object = curves.INK) -> None:
    """Writes text to the left of a row."""
    self.text(_LEFT - 0.1, self.low(row) + self.tall / 2, text, color=color, size=8.5, ha="right",
              va="center", linespacing=1.15)


def draw_maps(path: str | os.PathLike, network: Mapping, title: str) -> None:
  """Draws feature maps of one image: a column per layer, a row per class and one for the change.

  The rows of classes share one grey scale per column. The last row, the standard deviation between
  classes relative to that of all features of the layer, has one scale for the whole figure.

  Args:
    path: picture to write.
    network: a network of analysis.json.
    title: above the grid.
  """
  content = network["maps"]
  image, label, layers = unpack(content["image"]), np.array(content["label"]), content["layers"]
  names, spacing = list(layers[0]["maps"]), content["spacing"][-2:]
  grid = _Grid.create(len(names) + 1, len(layers) + 1,
                      image.shape[0] * spacing[0] / (image.shape[1] * spacing[1]))
  grid.text(0.12, grid.figure.get_size_inches()[1] - 0.12, title, size=11, va="top")
  _draw_image_column(grid, network, names, image, label)
  change_row = len(names)
  grid.row_name(change_row, "change\nbetween\nclasses")
  changes = [unpack(layer["change"]) for layer in layers]
  largest = max(float(change.max()) for change in changes) or 1.0
  for column, (layer, change) in enumerate(zip(layers, changes, strict=True), start=1):
    grid.heading(column, layer["name"].replace("/", "\n"))
    maps = {name: unpack(packed) for name, packed in layer["maps"].items()}
    low, high = np.percentile(np.stack(list(maps.values())), [1, 99])
    for row, name in enumerate(names):
      grid.panel(column, row).imshow(maps[name], cmap="gray", vmin=low,
                                     vmax=max(high, low + 1e-9), aspect="auto")
    axes = grid.panel(column, change_row)
    mappable = axes.imshow(change, cmap="magma", vmin=0, vmax=largest, aspect="auto")
    share = "–" if layer["share"] is None else f"{100 * layer['share']:.0f} %"
    axes.text(0.5, -0.03, share, transform=axes.transAxes, ha="center", va="top", size=8,
              color=curves.INK)
  grid.text(_LEFT + _PANEL, _BOTTOM - 0.04, "variance explained:", size=8, ha="right", va="top")
  scale = grid.axes(grid.figure.get_size_inches()[0] - 0.62, _BOTTOM, 0.1)
  grid.figure.colorbar(mappable, cax=scale)
  scale.set_title("relative\nSD", size=7, color=curves.FAINT, pad=4)
  scale.tick_params(labelsize=7, colors=curves.FAINT, length=2)
  scale.spines[:].set_visible(False)
  curves.save(path, grid.figure)


def _draw_image_column(grid: _Grid, network: Mapping, names: list[str], image: np.ndarray,
                       label: np.ndarray) -> None:
  """Draws the image with the contour of each class, and the names of the rows."""
  low, high = robust_window(image)
  grid.heading(0, "image")
  for row, name in enumerate(names):
    index = network["classes"].index(name)
    color = np.array(network["colors"][index]) / 255
    axes = grid.panel(0, row)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect="auto")
    mask = label == index + 1
    if mask.any() and not mask.all():
      axes.contour(mask.astype(float), [0.5], colors=[color], linewidths=1.3)
    grid.row_name(row, name, color)


def draw_plane(path: str | os.PathLike, network: Mapping, title: str) -> None:
  """Draws learned class vectors in the plane of their first two principal components.

  Args:
    path: picture to write.
    network: a network of analysis.json.
    title: above the plot.
  """
  from matplotlib.figure import Figure

  plane = network["class_plane"]
  points = np.array(plane["coordinates"])
  figure = Figure(figsize=(4.6, 4.4), facecolor="white", layout="constrained")
  axes = figure.add_subplot()
  axes.scatter(*points.T, s=44, color=np.array(network["colors"]) / 255, zorder=3)
  for name, (x, y) in zip(network["classes"], points, strict=True):
    axes.annotate(name, (x, y), xytext=(0, 7), textcoords="offset points", size=9,
                  color=curves.INK, ha="center")
  reach = 1.35 * max(float(np.abs(points).max()), 1e-9)
  axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
  for number, (axis, share) in enumerate(
      zip((axes.xaxis, axes.yaxis), plane["variance"], strict=True), start=1):
    axis.set_label_text(f"component {number}, {100 * share:.0f} % of variance", size=9,
                        color=curves.INK)
  axes.set_title(title, loc="left", size=10, color=curves.INK)
  axes.grid(color=curves.RULE, linewidth=0.7)
  axes.tick_params(colors=curves.FAINT, labelsize=8, length=3)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(curves.FAINT)
  curves.save(path, figure)
