"""Writes tables and figures of an analysis from the content of analysis.json."""

from collections.abc import Mapping
from pathlib import Path
import re

from condseg_jax.analysis import curves
from condseg_jax.analysis import files
from condseg_jax.analysis import grids


def write(folder: Path, study: Mapping) -> list[Path]:
  """Writes analysis.csv, analysis.md and the figures, and returns the paths of the figures.

  Args:
    folder: existing folder to write to.
    study: content of analysis.json.
  """
  files.write_csv(folder, study)
  files.write_summary(folder, study)
  return draw(folder, study)


def draw(folder: Path, study: Mapping) -> list[Path]:
  """Draws the figures into a folder and returns their paths.

  Args:
    folder: existing folder to write to.
    study: content of analysis.json.
  """
  drawn = []
  for name, panels in curves.panels(study).items():
    curves.draw_curves(folder / name, study, panels)
    drawn.append(folder / name)
  for name, (network, *_) in study["networks"].items():  # the first of several runs is shown
    file = re.sub(r"[^\w.-]+", "_", name)
    if network["maps"] is not None:
      grids.draw_maps(folder / f"features_{file}.png", network,
                      f"{name}: features of {network['maps']['case']} under each class")
      drawn.append(folder / f"features_{file}.png")
    if network["class_plane"] is not None and len(network["classes"]) > 2:
      grids.draw_plane(folder / f"vectors_{file}.png", network, f"{name}: class vectors")
      drawn.append(folder / f"vectors_{file}.png")
  return drawn
