"""Overlay figure: one test case as segmented by every variant, beside the truth.

Drawn from the arrays that scoring kept in `OUT/work/shown`, if they still exist. Real images must
not leave `OUT/work`; synthetic phantoms may.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from condseg_jax.classes import hue
from condseg_jax.report import display
from condseg_jax.report.display import ABDOMEN_HU
from condseg_jax.study import records
from condseg_jax.study.figures import save

UNTOLD = "no condition"  # label of the single map of such a network
COLUMNS = 4  # cells in a row
CELL = 2.1  # inches


def write(out: Path, study: str, rows: Sequence[Mapping]) -> Path | None:
  """Draws the case for the first seed of every variant.

  Returns:
    Path of the picture, in OUT/figures for phantoms and in OUT/work for others; None if no arrays
    were kept.
  """
  shown = {}
  for row in sorted(rows, key=lambda r: (r["order"], r["seed"])):
    path = out / "work" / "shown" / f"{row['key'][:records.KEY_DIGITS]}.npz"
    if row["label"] not in shown and path.exists():
      with np.load(path, allow_pickle=False) as kept:
        shown[row["label"]] = {name: kept[name] for name in kept.files}
  if not shown:
    return None
  drawn = any(rows[0]["scores"]["groups"])  # phantoms have scanners
  path = (out if drawn else out / "work") / "figures" / f"{study}_overlay.png"
  path.parent.mkdir(parents=True, exist_ok=True)
  untold = {row["label"] for row in rows if row["mechanism"] == "none"}
  save(path, draw(shown, rows[0]["scores"]["classes"], untold))
  return path


def draw(shown: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str],
         untold: Collection[str] = ()):
  """Draws a cell with the truth and one per variant with its contours.

  Args:
    shown: label → what `runner` kept: image, truth, prediction in canonical axes, names.
    classes: the classes, in the order of the colours.
    untold: labels of the unconditioned networks, whose single map belongs to no particular class.
  """
  from matplotlib.figure import Figure
  from matplotlib.patches import Patch

  first = next(iter(shown.values()))
  image, truth = first["image"], _ordered(first["truth"], first["names"], classes)
  plane = ()
  if truth.ndim == 3:
    plane = (display.telling_indices(truth, truth)[0],)
  image, truth = image[plane], truth[plane]
  rgb = truth.ndim == image.ndim - 1
  window = (0, 255) if rgb else (ABDOMEN_HU if str(first["modality"]) == "ct" else
                                 display.robust_window(first["image"]))
  grey = display.displayable(image, window) @ np.array([0.299, 0.587, 0.114])
  spacing = first["spacing"][-2:]
  cells = {"truth": truth} | {
      label: _ordered(kept["prediction"], kept["names"], classes)[plane]
      for label, kept in shown.items()}
  rows = -(-len(cells) // COLUMNS)
  aspect = truth.shape[0] * spacing[0] / (truth.shape[1] * spacing[1])
  figure = Figure(figsize=(CELL * COLUMNS, (CELL * aspect + 0.3) * rows + 0.4),
                  layout="constrained")
  panels = np.atleast_1d(figure.subplots(rows, COLUMNS)).ravel()
  colors = [tuple(c / 255 for c in hue(k)) for k in range(len(classes))]
  if untold := set(untold) & set(shown):
    cells |= {label: (len(classes) + 1) * (cells[label] > 0) for label in untold}
    colors, classes = [*colors, (0.75, 0.75, 0.75)], [*classes, UNTOLD]
  for axes in panels:
    axes.axis("off")
  for axes, (label, labels) in zip(panels, cells.items(), strict=False):
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=spacing[0] / spacing[1],
                interpolation="bilinear")
    for k, color in enumerate(colors):
      mask = np.pad(labels == k + 1, 1)
      if mask.any():
        grid = [np.arange(n) - 1.0 for n in mask.shape[::-1]]
        axes.contourf(*grid, mask.astype(float), [0.5, 1.5], colors=[color], alpha=0.35)
        axes.contour(*grid, mask.astype(float), [0.5], colors=[color], linewidths=1.1)
    axes.set(xlim=(-0.5, labels.shape[1] - 0.5), ylim=(labels.shape[0] - 0.5, -0.5))
    axes.set_title(label, fontsize=9)
  figure.legend(handles=[Patch(color=c, label=n) for c, n in zip(colors, classes, strict=True)],
                loc="outside lower center", ncols=min(6, len(classes)), fontsize=8, frameon=False)
  return figure


def _ordered(label: np.ndarray, names: np.ndarray, classes: Sequence[str]) -> np.ndarray:
  """Remaps a label map from a network's class order to that of a list; others and void are 0."""
  values = np.zeros(256, np.uint8)
  for value, name in enumerate(names.tolist(), 1):
    if name in classes:
      values[value] = classes.index(name) + 1
  return values[label]
