"""One case of the page as plain data: drawn at once, so that no array has to be kept."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from condseg_jax import metrics
from condseg_jax.classes import ClassTable
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.evaluate.scores import nan_mean
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.report import figures
from condseg_jax.report.page import scan as scans
from condseg_jax.report.page import slices

# Structure → measure ("volume_ml", "dice", …) → its value; None and nan mean that it has none.
Measures = Mapping[str, Mapping[str, float | bool | str | None]]


@dataclasses.dataclass(frozen=True)
class Case:
  """What the page says of one case.

  Attributes:
    name: as it is to be shown.
    measures: of the structures looked for.
    facts: one line about the image.
    slices: drawings, see `slices.draw_slices`.
    scan: for the viewer; None for pictures.
    unseen: why there is no scan, where a reader would expect one.
    warnings: lines for the reader.
    failure: why there is nothing of the above; empty when all went well.
  """

  name: str
  measures: Measures = dataclasses.field(default_factory=dict)
  facts: str = ""
  slices: tuple[str, ...] = ()
  scan: scans.Scan | None = None
  unseen: str = ""
  warnings: tuple[str, ...] = ()
  failure: str = ""

  @property
  def dice(self) -> float:
    """Mean Dice over the structures that have one; nan where none has."""
    return nan_mean(float(m["dice"]) for m in self.measures.values() if m.get("dice") is not None)


def draw_case(name: str, volume: Volume, label: Volume, table: ClassTable, measures: Measures, *,
              modality: str, truth: Mapping[str, np.ndarray] | None = None,
              masks: Mapping[str, np.ndarray] | None = None,
              warnings: Sequence[str] = ()) -> Case:
  """Draws a case.

  Args:
    name: as it is to be shown.
    volume: the image.
    label: label map on its grid, id + 1 of the class.
    table: names and colours.
    measures: of the structures looked for, all of them classes of the table.
    modality: of the plan, "ct", "mr" or "rgb".
    truth: annotated class → three-valued mask on the same grid.
    masks: class → bool mask, where they say more than the label map, as for structures that
      overlap; used for the errors.
    warnings: lines for the reader.
  """
  layers = {"prediction": label.array}
  known = {c: mask for c, mask in (truth or {}).items() if c in table.names}
  if known:
    layers["truth"] = figures.truth_map(known, table)
    found = masks or {c: label.array == table.index(c) + 1 for c in known}
    layers["errors"] = error_map(found, known)
  image = to_canonical(volume)
  if modality == "ct":
    window = figures.ABDOMEN_HU
  elif image.array.dtype == np.uint8 and modality == "rgb":
    window = (0.0, 255.0)
  else:
    window = tuple(map(float, figures.robust_window(image.array)))
  canonical = {key: to_canonical(Volume(array, volume.affine)).array
               for key, array in layers.items()}
  scan, indices, unseen = None, (), ""
  if volume.ndim == 3:
    indices = figures.telling_indices(canonical["prediction"],
                                      canonical.get("truth", canonical["prediction"]))
    focus = (image.affine @ np.append(indices, 1.0))[:3]
    ids = {c: table.index(c) for c in measures}
    scan = scans.encode_scan(volume, layers, ids, window, focus)
    unseen = "" if scan else "too many structures for the viewer"
  drawn = slices.draw_slices(image.array, canonical, table.names, image.spacing, window, indices)
  return Case(name, measures, grid_facts(volume), drawn, scan, unseen, tuple(warnings))


def error_map(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> np.ndarray:
  """Where prediction and truth differ, uint8: slices.EXTRA, MISSED, and MIXED where both are true.

  Args:
    found: class → bool mask; a class that is not there counts as empty.
    truth: annotated class → three-valued mask. Where it is unlabelled, and of classes that nobody
      annotated, nothing is known and nothing is an error.
  """
  errors = np.zeros(next(iter(truth.values())).shape, np.uint8)
  for name, mask in truth.items():
    predicted = found.get(name)
    if predicted is None:
      predicted = np.zeros(mask.shape, bool)
    errors |= (predicted & (mask == NEGATIVE)).astype(np.uint8) * np.uint8(slices.EXTRA)
    errors |= (~predicted & (mask == POSITIVE)).astype(np.uint8) * np.uint8(slices.MISSED)
  return errors


def structure_sizes(label: Volume, values: Mapping[str, int]) -> dict[str, dict[str, float]]:
  """Class → {"volume_ml": …} (in 2-D {"area_px": …}), counted in a label map.

  Args:
    label: label map.
    values: class → its value in the map.
  """
  counts = np.zeros(1 + max(max(values.values(), default=0), int(label.array.max())), np.int64)
  for plane in np.moveaxis(label.array, -1, 0):  # a count of the whole would be of 64-bit copies
    part = np.bincount(plane.ravel())
    counts[:len(part)] += part
  key = "volume_ml" if label.ndim == 3 else "area_px"
  return {name: {key: metrics.size(int(counts[value]), label.spacing)}
          for name, value in values.items()}


def grid_facts(volume: Volume) -> str:
  """Size and spacing of an image, in the axis order of its file."""
  shape = " × ".join(map(str, volume.geometry.shape))
  if volume.ndim == 2:
    return f"{shape} pixels"
  return f"{shape} voxels of {' × '.join(f'{s:.3g}' for s in volume.spacing)} mm"
