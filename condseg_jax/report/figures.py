"""Overlays of one case: prediction and truth drawn over the image, side by side."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import NamedTuple

import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import UNLABELLED
from condseg_jax.errors import printable
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.evaluate.scores import nan_mean
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.report.display import ABDOMEN_HU
from condseg_jax.report.display import displayable
from condseg_jax.report.display import robust_window
from condseg_jax.report.display import telling_indices
from condseg_jax.report.display import truth_map
from condseg_jax.report.display import VIEWS
from condseg_jax.system.atomic import replacing

_PAPER, _INK, _FAINT = "#14161a", "#f2f2f0", "#a7abb3"
_GREY, _HATCH, _FILL = "#8b9099", "#e8e9ec", 0.38
_PANEL_INCHES, _GAP = 4.2, 0.15
_ROW_INCHES = 0.4  # least height of a row: its title has two lines
_CHARACTER_INCHES = 0.09  # mean width of a character at 10 points
_MARK_INCHES = 0.6  # least side of a panel with letters at both ends


class _Panel(NamedTuple):
  """The contents of one panel: 2-D arrays in display orientation."""
  image: np.ndarray  # (H, W, 3), 0 to 1
  labels: np.ndarray  # (H, W)
  spacing: tuple[float, float]
  letters: tuple[str, ...] = ()

  @property
  def extent(self) -> tuple[float, float, float, float]:
    """Left, right, bottom, top in mm."""
    (h, w), (dy, dx) = self.labels.shape, self.spacing
    return (0.0, w * dx, h * dy, 0.0)


def pick_median_and_worst(rows: Iterable[CaseScore]) -> tuple[str, str]:
  """Returns the ids of the cases with the median and the lowest mean Dice over their classes.

  Of an even number of cases the lower of the middle pair is the median. Ties are broken by id, so
  that the choice does not depend on the order of the rows.

  Raises:
    ValueError: no case has a Dice.
  """
  dices: dict[str, list[float]] = {}
  for row in rows:
    dices.setdefault(row.case, []).append(row.metrics["dice"])
  means = {case: nan_mean(values) for case, values in dices.items()}
  ranking = sorted((mean, case) for case, mean in means.items() if not np.isnan(mean))
  if not ranking:
    raise ValueError("no case has a Dice score")
  return ranking[(len(ranking) - 1) // 2][1], ranking[0][1]


def overlay_figure(path: str | os.PathLike, image: np.ndarray, prediction: np.ndarray,
                   truth: np.ndarray | None, class_names: Sequence[str],
                   colors: Sequence[Sequence[int]], spacing: Sequence[float], title: str = "", *,
                   window: tuple[float, float] | None = None,
                   heat: np.ndarray | None = None) -> None:
  """Draws prediction and truth over the image and saves the figure.

  A volume is shown as an axial, a coronal and a sagittal slice (rows), with prediction and truth as
  columns; a 2-D image as image, prediction and truth. Without a truth, the plain image is shown
  beside the prediction. Unlabelled voxels of the truth are hatched in grey.

  Args:
    path: file to write (.png, .pdf, .svg).
    image: (D, H, W) in canonical order, (H, W) or (H, W, 3); of other channels the first is shown.
    prediction: label map of the spatial shape: class index + 1, 0 background.
    truth: label map of the same shape, 255 is unlabelled; or None.
    class_names: name per class index.
    colors: red, green, blue per class index, 0 to 255.
    spacing: mm per spatial axis.
    title: one line above the panels.
    window: intensities shown as black and white; 1st and 99.5th percentile when None.
    heat: uncertainty in bits of the spatial shape, drawn over the image in a further column.

  Raises:
    ValueError: the grids of image, prediction and truth differ.
    InputError: the file cannot be written.
  """
  ndim = prediction.ndim
  grids = {prediction.shape, image.shape[:ndim], *(() if truth is None else (truth.shape,))}
  if len(grids) > 1:
    raise ValueError(f"image, prediction and truth are not on the same grid: {sorted(grids)}")
  rgb = ndim == 2 and image.shape[2:] == (3,)
  if image.ndim > ndim and not rgb:
    image = image[..., 0]
  window = window or ((0, 255) if rgb and image.dtype == np.uint8 else robust_window(image))
  columns = {"prediction": prediction}
  if truth is None or ndim == 2:
    columns = {"image": np.zeros_like(prediction)} | columns
  if truth is not None:
    columns["truth"] = truth
  if ndim == 3:
    indices = telling_indices(prediction, prediction if truth is None else truth)
    panels, names = _volume_panels(image, list(columns.values()), indices, spacing, window)
  else:
    image = displayable(image, window)
    panels = [[_Panel(image, labels, tuple(spacing)) for labels in columns.values()]]
    names = ("",)
  headings = tuple(columns)
  if heat is not None:
    top = max(float(heat.max()), 1e-3)
    headings += (f"uncertainty, up to {top:.2g} bits",)
    add = lambda row, values: [*row, row[0]._replace(image=_heated(row[0].image, values / top),
                                                     labels=np.zeros_like(row[0].labels))]
    planes = [view.plane(heat, indices[view.axis]) for view in VIEWS] if ndim == 3 else [heat]
    panels = list(map(add, panels, planes))
  palette = np.concatenate([np.zeros((1, 3)), np.asarray(colors, np.float64) / 255])
  import matplotlib  # slow to import

  # The hatching of contours can only be coloured here; it is evaluated when they are saved. Names
  # of files and classes are not formulas, even with "$".
  style = {"hatch.color": _HATCH, "hatch.linewidth": 0.8, "text.parse_math": False}
  with matplotlib.rc_context(style):
    _save(path, _draw(panels, headings, names, list(map(printable, class_names)), palette,
                      printable(title)))


def _volume_panels(image, columns, indices, spacing, window):
  """Makes one row of panels per view, one panel per label map in `columns`, and row titles."""
  panels, names = [], []
  for view in VIEWS:
    index, n = indices[view.axis], image.shape[view.axis]
    plane = tuple(s for axis, s in enumerate(spacing) if axis != view.axis)
    image_2d, *labels_2d = (view.plane(array, index) for array in (image, *columns))
    rgb = displayable(image_2d, window)
    panels.append([_Panel(rgb, labels, plane, view.letters) for labels in labels_2d])
    names.append(f"{view.name}\n{index + 1} / {n}")
  return panels, names


def _heated(image: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Lays values between 0 and 1 over an image in colour; the higher, the less transparent."""
  import matplotlib

  values = np.clip(values.astype(np.float32), 0, 1)[..., None]
  grey = 0.6 * (image @ np.array([0.299, 0.587, 0.114]))[..., None]
  return grey * (1 - values) + matplotlib.colormaps["inferno"](values[..., 0])[..., :3] * values


def _draw(panels, headings, names, class_names, palette, title):
  """Lays the panels out in inches, with the same scale in mm for all of them."""
  from matplotlib.figure import Figure

  heights_mm = [row[0].extent[2] for row in panels]
  width_mm = max(panel.extent[1] for row in panels for panel in row)
  scale = min(_PANEL_INCHES / width_mm, 2 * _PANEL_INCHES / max(heights_mm))
  name_characters = max(len(line) for name in names for line in name.split("\n"))
  left = _GAP + (name_characters * _CHARACTER_INCHES + _GAP if name_characters else 0)
  width = left + len(headings) * (width_mm * scale + _GAP)
  values = sorted({int(value) for row in panels for panel in row for value in
                   np.unique(panel.labels)} - {0})
  longest = max((len(_label(value, class_names)) for value in values), default=0)
  per_line = max(1, int((width - left) / (0.75 + _CHARACTER_INCHES * longest)))
  footer = _GAP + 0.27 * -(-len(values) // per_line)
  header = 0.85 if title else 0.42
  row_heights = [max(mm * scale, _ROW_INCHES if any(names) else 0) for mm in heights_mm]
  height = header + sum(row_heights) + _GAP * len(row_heights) + footer
  figure = Figure(figsize=(width, height), facecolor=_PAPER)
  if title:
    figure.text(left / width, 1 - 0.17 / height, title, color=_INK, weight="bold",
                va="top", size=min(13, 110 * (width - left) / len(title)))
  y = height - header
  for row, name, height_mm, row_height in zip(panels, names, heights_mm, row_heights, strict=True):
    y -= row_height
    panel_height = height_mm * scale
    for column, panel in enumerate(row):
      panel_width = panel.extent[1] * scale
      x = left + column * (width_mm * scale + _GAP) + (width_mm * scale - panel_width) / 2
      axes = figure.add_axes((x / width, (y + (row_height - panel_height) / 2) / height,
                              panel_width / width, panel_height / height))
      _draw_panel(axes, panel, palette)
      _draw_letters(axes, panel.letters, panel_width, panel_height)
    figure.text((left - _GAP) / width, (y + row_height / 2) / height, name, color=_FAINT, size=10,
                ha="right", va="center")
    y -= _GAP
  for column, heading in enumerate(headings):
    x = left + column * (width_mm * scale + _GAP) + width_mm * scale / 2
    figure.text(x / width, (height - header + 0.09) / height, heading, color=_INK, size=11,
                ha="center")
  _draw_legend(figure, values, class_names, palette, per_line)
  return figure


def _draw_panel(axes, panel: _Panel, palette: np.ndarray) -> None:
  # Labels are drawn over a grey image: its own colours would mix with those of the classes.
  labelled = (panel.labels > 0).any()
  image = panel.image @ np.array([0.299, 0.587, 0.114]) if labelled else panel.image
  axes.imshow(image, extent=panel.extent, cmap="gray", vmin=0, vmax=1, interpolation="bilinear",
              aspect="auto")
  # A margin of background closes the contours at the border of the image.
  labels = np.pad(panel.labels, 1)
  (h, w), (dy, dx) = labels.shape, panel.spacing
  grid = ((np.arange(w) - 0.5) * dx, (np.arange(h) - 0.5) * dy)
  for value in np.unique(labels[labels > 0]):
    mask = (labels == value).astype(np.float32)
    if value == UNLABELLED:
      axes.contourf(*grid, mask, [0.5, 1.5], colors=[_GREY], alpha=0.45)
      axes.contourf(*grid, mask, [0.5, 1.5], colors="none", hatches=["////"])
    else:
      color = palette[value]
      axes.contourf(*grid, mask, [0.5, 1.5], colors=[color], alpha=_FILL)
      axes.contour(*grid, mask, [0.5], colors=[color], linewidths=1.4)
  axes.set(xlim=panel.extent[:2], ylim=panel.extent[2:])
  axes.axis("off")


def _draw_letters(axes, letters: Sequence[str], width: float, height: float) -> None:
  """Marks the sides of a panel of a size in inches; pairs that would overlap are left out."""
  from matplotlib import patheffects

  outline = [patheffects.withStroke(linewidth=2, foreground="black")]
  places = ((0.02, 0.5, "left", "center", width), (0.98, 0.5, "right", "center", width),
            (0.5, 0.98, "center", "top", height), (0.5, 0.02, "center", "bottom", height))
  for letter, (x, y, ha, va, side) in zip(letters, places, strict=False):
    if side >= _MARK_INCHES:
      axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va, color=_INK, size=10,
                path_effects=outline)


def _draw_legend(figure, values, class_names, palette, per_line) -> None:
  from matplotlib.patches import Patch

  handles = [
      Patch(facecolor=_GREY, edgecolor=_HATCH, hatch="////", label=_label(value, class_names))
      if value == UNLABELLED else
      Patch(facecolor=(*palette[value], 0.6), edgecolor=palette[value],
            label=_label(value, class_names))
      for value in values]
  if handles:
    figure.legend(handles=handles, loc="lower center", ncols=min(per_line, len(handles)),
                  frameon=False, labelcolor=_INK, fontsize=10, borderaxespad=0.4)


def _label(value: int, class_names: Sequence[str]) -> str:
  return "unlabelled" if value == UNLABELLED else class_names[value - 1]


def _save(path: str | os.PathLike, figure) -> None:
  with replacing(path) as temporary:
    figure.savefig(temporary, dpi=150, facecolor=_PAPER)


def draw_prediction(path: str | os.PathLike, volume: Volume, label: Volume, table: ClassTable,
                    title: str, truth: Mapping[str, np.ndarray] | None = None, *,
                    modality: str, uncertainty: Volume | None = None) -> None:
  """Draws a label map over its image, with truth and uncertainty beside it if there are any.

  Args:
    path: file to write.
    volume: the image.
    label: label map on the same grid.
    table: names and colours of the classes.
    title: one line above the panels.
    truth: annotated class → three-valued mask on the same grid.
    modality: of the plan; CT is shown in the abdominal soft-tissue window.
    uncertainty: of every voxel in bits, on the same grid.

  Raises:
    InputError: the file cannot be written.
  """
  drawn_truth = None
  known = {name: mask for name, mask in (truth or {}).items() if name in table.names}
  if known:
    drawn_truth = to_canonical(Volume(truth_map(known, table), volume.affine)).array
  image = to_canonical(volume)
  window = ABDOMEN_HU if modality == "ct" else None
  overlay_figure(path, image.array, to_canonical(label).array, drawn_truth, table.names,
                 table.colors, image.spacing, title, window=window,
                 heat=None if uncertainty is None else to_canonical(uncertainty).array)
