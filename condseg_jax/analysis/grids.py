"""Grids of feature maps, and class vectors in the plane."""

from collections.abc import Mapping
import os

import numpy as np

from condseg_jax.analysis import curves
from condseg_jax.analysis.feature_maps import unpack
from condseg_jax.report.figures import robust_window

_PANEL, _GAP, _LEFT = 1.15, 0.06, 0.95  # inches


def draw_maps(path: str | os.PathLike, network: Mapping, title: str) -> None:
  """Features of one image: a column for each layer, a row for each class, and what it changed.

  The rows of a column share one grey scale. The last row has one scale for the whole figure: the
  standard deviation between classes as a part of that of all features of the layer.

  Args:
    path: picture to write.
    network: of analysis.json.
    title: above the grid.
  """
  from matplotlib.figure import Figure

  found = network["maps"]
  image, label = unpack(found["image"]), np.array(found["label"])
  colors = {name: np.array(c) / 255
            for name, c in zip(network["classes"], network["colors"], strict=True)}
  names = list(found["layers"][0]["maps"])
  spacing = found["spacing"][-2:]
  ratio = (image.shape[0] * spacing[0]) / (image.shape[1] * spacing[1])
  columns, rows = len(found["layers"]) + 1, len(names) + 1
  width = _LEFT + columns * (_PANEL + _GAP) + 0.75
  tall = _PANEL * ratio
  top, bottom = 0.78, 0.34
  height = top + rows * (tall + _GAP) + bottom
  figure = Figure(figsize=(width, height), facecolor="white")
  figure.text(0.12 / width, 1 - 0.12 / height, title, size=11, color=curves.INK, va="top")

  def panel(column, row):
    axes = figure.add_axes(((_LEFT + column * (_PANEL + _GAP)) / width,
                            (bottom + (rows - 1 - row) * (tall + _GAP)) / height,
                            _PANEL / width, tall / height))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes

  def heading(column, text):
    figure.text((_LEFT + column * (_PANEL + _GAP) + _PANEL / 2) / width, 1 - (top - 0.08) / height,
                text, size=8, color=curves.INK, ha="center", va="bottom", linespacing=1.1)

  low, high = robust_window(image)
  heading(0, "image")
  for row, name in enumerate(names):
    axes = panel(0, row)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect="auto")
    mask = label == network["classes"].index(name) + 1
    if mask.any() and not mask.all():
      axes.contour(mask.astype(float), [0.5], colors=[colors[name]], linewidths=1.3)
    _row_name(figure, row, rows, f"asked for\n{name}", colors[name], tall, (width, height), bottom)
  _row_name(figure, len(names), rows, "change\nbetween\nclasses", curves.INK, tall,
            (width, height), bottom)
  changes = [unpack(layer["change"]) for layer in found["layers"]]
  most = max(float(change.max()) for change in changes) or 1.0
  for column, (layer, change) in enumerate(zip(found["layers"], changes, strict=True), start=1):
    heading(column, layer["name"].replace("/", "\n"))
    maps = {name: unpack(packed) for name, packed in layer["maps"].items()}
    ends = np.percentile(np.stack(list(maps.values())), [1, 99])
    for row, name in enumerate(names):
      panel(column, row).imshow(maps[name], cmap="gray", vmin=ends[0],
                                vmax=max(ends[1], ends[0] + 1e-9), aspect="auto")
    axes = panel(column, len(names))
    drawn = axes.imshow(change, cmap="magma", vmin=0, vmax=most, aspect="auto")
    share = "–" if layer["share"] is None else f"{100 * layer['share']:.0f} %"
    axes.text(0.5, -0.03, share, transform=axes.transAxes, ha="center", va="top", size=8,
              color=curves.INK)
  figure.text((_LEFT + _PANEL) / width, (bottom - 0.04) / height, "of variance by class:", size=8,
              color=curves.INK, ha="right", va="top")
  scale = figure.add_axes((1 - 0.62 / width, bottom / height, 0.1 / width, tall / height))
  figure.colorbar(drawn, cax=scale)
  scale.set_title("relative\nSD", size=7, color=curves.FAINT, pad=4)
  scale.tick_params(labelsize=7, colors=curves.FAINT, length=2)
  scale.spines[:].set_visible(False)
  curves.save(path, figure)


def draw_plane(path: str | os.PathLike, network: Mapping, title: str) -> None:
  """Learned class vectors in the plane of their first two principal components."""
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
  for side, axis, part in zip("xy", (axes.xaxis, axes.yaxis), plane["variance"], strict=True):
    axis.set_label_text(f"component {'xy'.index(side) + 1}, {100 * part:.0f} % of variance",
                        size=9, color=curves.INK)
  axes.set_title(title, loc="left", size=10, color=curves.INK)
  axes.grid(color=curves.RULE, linewidth=0.7)
  axes.tick_params(colors=curves.FAINT, labelsize=8, length=3)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(curves.FAINT)
  curves.save(path, figure)


def _row_name(figure, row, rows, text, color, tall, size, bottom):
  y = bottom + (rows - 1 - row) * (tall + _GAP) + tall / 2
  figure.text((_LEFT - 0.1) / size[0], y / size[1], text, size=8.5, color=curves.INK, ha="right",
              va="center", linespacing=1.15)
