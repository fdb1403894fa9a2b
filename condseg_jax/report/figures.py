"""Pictures of one case: the prediction beside the truth."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from condseg_jax.classes import ClassTable
from condseg_jax.classes import label_map
from condseg_jax.classes import UNLABELLED
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.evaluate.scores import nan_mean
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import replacing

_PAPER, _INK, _FAINT = "#14161a", "#f2f2f0", "#a7abb3"
_GREY, _HATCH, _FILL = "#8b9099", "#e8e9ec", 0.38
_PANEL_INCHES, _GAP = 4.2, 0.15


class View(NamedTuple):
  """One plane through a canonical volume (axes towards S, P, L) as a reader expects it."""
  name: str
  axis: int  # the array axis that the plane is perpendicular to
  top_down: bool  # whether the first remaining axis already runs down the page
  letters: tuple[str, str, str, str]  # left, right, top, bottom


VIEWS = (View("axial", 0, True, ("R", "L", "A", "P")),
          View("coronal", 1, False, ("R", "L", "S", "I")),
          View("sagittal", 2, False, ("A", "P", "S", "I")))


class _Panel(NamedTuple):
  """What one picture shows: plain 2-D arrays, the way up they are drawn."""
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
  """Ids of the cases with the median and with the lowest mean Dice over their classes.

  Of an even number of cases the lower one of the middle pair is the median; ties go by id, so
  that the choice does not depend on the order of the rows.

  Raises:
    ValueError: if no case has a Dice.
  """
  dices: dict[str, list[float]] = {}
  for row in rows:
    dices.setdefault(row.case, []).append(row.metrics["dice"])
  means = {case: nan_mean(values) for case, values in dices.items()}
  ranking = sorted((mean, case) for case, mean in means.items() if not np.isnan(mean))
  if not ranking:
    raise ValueError("no case has a Dice, so there is neither a median nor a worst one")
  return ranking[(len(ranking) - 1) // 2][1], ranking[0][1]


def overlay_figure(path: str | os.PathLike, image: np.ndarray, prediction: np.ndarray,
                   truth: np.ndarray | None, class_names: Sequence[str],
                   colors: Sequence[Sequence[int]], spacing: Sequence[float], title: str = "", *,
                   window: tuple[float, float] | None = None) -> None:
  """Draw prediction and truth over the image and save the picture.

  A volume is shown in an axial, a coronal and a sagittal slice (rows), prediction left and truth
  right; an image as image, prediction and truth. Without a truth the bare image is beside the
  prediction. Unlabelled voxels of the truth are grey, hatched.

  Args:
    path: file to write (.png, .pdf, .svg).
    image: (D, H, W) in canonical order, (H, W) or (H, W, 3); of other channels the first is shown.
    prediction: label map of the spatial shape: class index + 1, 0 background.
    truth: label map of the same shape, 255 is unlabelled; or None.
    class_names: name per class index.
    colors: red, green, blue per class index, 0 to 255.
    spacing: mm per spatial axis.
    title: one line above the pictures.
    window: intensities drawn black and white; by default the 1st and 99.5th percentile.
  """
  ndim = prediction.ndim
  grids = {prediction.shape, image.shape[:ndim], *(() if truth is None else (truth.shape,))}
  if len(grids) > 1:
    raise ValueError(f"image, prediction and truth do not show the same grid: {sorted(grids)}")
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
    shown = displayable(image, window)
    panels = [[_Panel(shown, labels, tuple(spacing)) for labels in columns.values()]]
    names = ("",)
  headings = tuple(columns)
  palette = np.concatenate([np.zeros((1, 3)), np.asarray(colors, np.float64) / 255])
  import matplotlib  # heavy, and needed by the figures alone

  # Contours take the colour of their hatching from here alone, some of it when they are saved.
  with matplotlib.rc_context({"hatch.color": _HATCH, "hatch.linewidth": 0.8}):
    _save(path, _draw(panels, headings, names, class_names, palette, title))


def robust_window(image: np.ndarray) -> tuple[float, float]:
  """Intensities to draw black and white, whatever a few extreme voxels hold."""
  sample = image.ravel()[::max(1, image.size // 1_000_000)].astype(np.float32)
  sample = sample[np.isfinite(sample)]
  return tuple(np.percentile(sample, [1, 99.5])) if sample.size else (0.0, 1.0)


def displayable(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
  """A 2-D picture as red, green, blue between 0 and 1."""
  lo, hi = window
  image = np.nan_to_num(image.astype(np.float32), posinf=hi, neginf=lo, nan=lo)
  image = np.clip((image - lo) / max(hi - lo, 1e-12), 0, 1)
  return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def _volume_panels(image, columns, indices, spacing, window):
  """One row per axis through its most telling slice, one panel per label map in `columns`."""
  panels, names = [], []
  for view in VIEWS:
    index, n = indices[view.axis], image.shape[view.axis]
    plane = tuple(s for axis, s in enumerate(spacing) if axis != view.axis)
    image_2d, *labels_2d = (np.take(array, index, axis=view.axis)[::1 if view.top_down else -1]
                            for array in (image, *columns))
    shown = displayable(image_2d, window)
    panels.append([_Panel(shown, labels, plane, view.letters) for labels in labels_2d])
    names.append(f"{view.name}  {index + 1} / {n}")
  return panels, names


def telling_indices(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, ...]:
  """Per axis the slice that cuts the structures of the truth (else the prediction) largest.

  Every class counts relative to its own largest cut, or a liver would hide every pancreas.
  """
  for labels in (np.where(truth == UNLABELLED, 0, truth), prediction):
    profiles = [np.zeros(n) for n in truth.shape]
    for value, box in enumerate(ndimage.find_objects(labels), 1):
      if box is not None:
        mask = labels[box] == value
        for axis, profile in enumerate(profiles):
          areas = np.count_nonzero(np.moveaxis(mask, axis, 0), axis=(1, 2))
          profile[box[axis]] += areas / areas.max()
    if profiles[0].any():
      return tuple(int(np.argmax(profile)) for profile in profiles)
  return tuple(n // 2 for n in truth.shape)


def _draw(panels, headings, names, class_names, palette, title):
  """Lay the panels out in inches, so that every millimetre is as long in every panel."""
  from matplotlib.figure import Figure

  heights_mm = [row[0].extent[2] for row in panels]
  width_mm = max(panel.extent[1] for row in panels for panel in row)
  scale = min(_PANEL_INCHES / width_mm, 2 * _PANEL_INCHES / max(heights_mm))
  left = 0.45 if any(names) else _GAP
  width = left + len(headings) * (width_mm * scale + _GAP)
  shown = sorted({int(value) for row in panels for panel in row for value in
                  np.unique(panel.labels)} - {0})
  longest = max((len(_label(value, class_names)) for value in shown), default=0)
  per_line = max(1, int((width - left) / (0.75 + 0.09 * longest)))
  footer = _GAP + 0.27 * -(-len(shown) // per_line)
  header = 0.85 if title else 0.42
  height = header + sum(mm * scale + _GAP for mm in heights_mm) + footer
  figure = Figure(figsize=(width, height), facecolor=_PAPER)
  if title:
    figure.text(left / width, 1 - 0.17 / height, title, color=_INK, weight="bold",
                va="top", size=min(13, 110 * (width - left) / len(title)))
  y = height - header
  for row, name, height_mm in zip(panels, names, heights_mm, strict=True):
    y -= height_mm * scale
    for column, panel in enumerate(row):
      own = panel.extent[1]
      x = left + column * (width_mm * scale + _GAP) + (width_mm - own) * scale / 2
      axes = figure.add_axes((x / width, y / height, own * scale / width,
                              height_mm * scale / height))
      _draw_panel(axes, panel, palette)
    figure.text(left / 2 / width, (y + height_mm * scale / 2) / height, name, color=_FAINT, size=10,
                rotation=90, ha="center", va="center")
    y -= _GAP
  for column, heading in enumerate(headings):
    x = left + column * (width_mm * scale + _GAP) + width_mm * scale / 2
    figure.text(x / width, (height - header + 0.09) / height, heading, color=_INK, size=11,
                ha="center")
  _draw_legend(figure, shown, class_names, palette, per_line)
  return figure


def _draw_panel(axes, panel: _Panel, palette: np.ndarray) -> None:
  from matplotlib import patheffects

  drawn = panel.labels > 0
  # Under colours a picture in grey: its own colours would mix with those of the classes.
  image = panel.image @ np.array([0.299, 0.587, 0.114]) if drawn.any() else panel.image
  axes.imshow(image, extent=panel.extent, cmap="gray", vmin=0, vmax=1, interpolation="bilinear",
              aspect="auto")
  # One voxel of background around the labels closes the contours at the border of the image.
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
  outline = [patheffects.withStroke(linewidth=2, foreground="black")]
  places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"),
            (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
  for letter, (x, y, ha, va) in zip(panel.letters, places, strict=False):
    axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va, color=_INK, size=10,
              path_effects=outline)


def _draw_legend(figure, shown, class_names, palette, per_line) -> None:
  from matplotlib.patches import Patch

  handles = [
      Patch(facecolor=_GREY, edgecolor=_HATCH, hatch="////", label=_label(value, class_names))
      if value == UNLABELLED else
      Patch(facecolor=(*palette[value], 0.6), edgecolor=palette[value],
            label=_label(value, class_names))
      for value in shown]
  if handles:
    figure.legend(handles=handles, loc="lower center", ncols=min(per_line, len(handles)),
                  frameon=False, labelcolor=_INK, fontsize=10, borderaxespad=0.4)


def _label(value: int, class_names: Sequence[str]) -> str:
  return "unlabelled" if value == UNLABELLED else class_names[value - 1]


def _save(path: str | os.PathLike, figure) -> None:
  with replacing(path) as temporary:
    figure.savefig(temporary, dpi=150, facecolor=_PAPER)


# --- Pictures of a prediction, in canonical axes whatever the grid of the file.
ABDOMEN_HU = (-160.0, 240.0)


def draw_prediction(path, volume: Volume, label: Volume, table: ClassTable, title: str,
                    truth: Mapping[str, np.ndarray] | None = None, *, modality: str) -> None:
  """Draws a label map over its image, and the truth beside it where there is one.

  Args:
    path: picture to write.
    volume: the image.
    label: label map on the same grid.
    table: names and colours.
    title: above the picture.
    truth: annotated class → three-valued mask on the same grid.
    modality: of the plan; CT is drawn in the window in which radiologists read an abdomen.
  """
  drawn_truth = None
  known = {name: mask for name, mask in (truth or {}).items() if name in table.names}
  if known:
    drawn_truth = to_canonical(Volume(truth_map(known, table), volume.affine)).array
  image = to_canonical(volume)
  window = ABDOMEN_HU if modality == "ct" else None
  overlay_figure(path, image.array, to_canonical(label).array, drawn_truth, table.names,
                 table.colors, image.spacing, title, window=window)


def truth_map(truth: Mapping[str, np.ndarray], table: ClassTable) -> np.ndarray:
  """The three-valued masks of some classes as one label map, see `classes.label_map`."""
  return label_map(np.stack(list(truth.values())), [table.index(name) for name in truth])
