"""Pictures of a prediction, in canonical axes whatever the grid of the file."""

from collections.abc import Mapping

import numpy as np

from condseg_jax.classes import ClassTable, label_map
from condseg_jax.evaluate.figures import overlay_figure
from condseg_jax.geometry import Volume, to_canonical

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
