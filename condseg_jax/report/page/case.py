"""One case of the report page, rendered at once, so that no arrays have to be kept."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from condseg_jax import metrics
from condseg_jax.classes import ClassTable
from condseg_jax.classes import NEGATIVE
from condseg_jax.classes import POSITIVE
from condseg_jax.evaluate.scores import nan_mean
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.report import display
from condseg_jax.report.page import scan as scans
from condseg_jax.report.page import slices

# Structure → measure ("volume_ml", "dice", …) → value; None and nan if undefined.
Measures = Mapping[str, Mapping[str, float | bool | str | None]]


@dataclasses.dataclass(frozen=True)
class Case:
  """One case of the page.

  Attributes:
    name: displayed name.
    measures: of the requested structures.
    facts: one line about the image.
    slices: from `slices.draw_slices`.
    scan: data for the viewer; None for 2-D images.
    no_scan: why a volume has no scan; displayed.
    warnings: displayed lines.
    failure: why the case has no result; empty on success.
  """

  name: str
  measures: Measures = dataclasses.field(default_factory=dict)
  facts: str = ""
  slices: tuple[str, ...] = ()
  scan: scans.Scan | None = None
  no_scan: str = ""
  warnings: tuple[str, ...] = ()
  failure: str = ""

  @property
  def dice(self) -> float:
    """Mean Dice over the structures that have one; nan if none has."""
    return nan_mean(float(m["dice"]) for m in self.measures.values() if m.get("dice") is not None)

  @property
  def predicted(self) -> float:
    """Lowest predicted Dice of its structures; nan if none has one."""
    return min((float(m["predicted_dice"]) for m in self.measures.values()
                if m.get("predicted_dice") is not None), default=math.nan)


def draw_case(name: str, volume: Volume, label: Volume, table: ClassTable, measures: Measures, *,
              modality: str, truth: Mapping[str, np.ndarray] | None = None,
              masks: Mapping[str, np.ndarray] | None = None,
              warnings: Sequence[str] = ()) -> Case:
  """Renders a case.

  Args:
    name: displayed name.
    volume: the image.
    label: label map on its grid, class id + 1.
    table: names and colours of the classes.
    measures: of the requested structures, all of them classes of the table.
    modality: of the plan, "ct", "mr" or "rgb".
    truth: annotated class → three-valued mask on the same grid.
    masks: class → bool mask for the error map, if they may overlap; taken from the label map when
      None.
    warnings: displayed lines.
  """
  layers = {"prediction": label.array}
  known = {c: mask for c, mask in (truth or {}).items() if c in table.names}
  if known:
    layers["truth"] = display.truth_map(known, table)
    predicted = masks or {c: label.array == table.index(c) + 1 for c in known}
    layers["errors"] = error_map(predicted, known)
  image = to_canonical(volume)
  if modality == "ct":
    window = display.ABDOMEN_HU
  elif image.array.dtype == np.uint8 and modality == "rgb":
    window = (0.0, 255.0)
  else:
    window = tuple(map(float, display.robust_window(image.array)))
  canonical = {key: to_canonical(Volume(array, volume.affine)).array
               for key, array in layers.items()}
  scan, indices, no_scan = None, (), ""
  if volume.ndim == 3:
    indices = display.telling_indices(canonical["prediction"],
                                      canonical.get("truth", canonical["prediction"]))
    focus = (image.affine @ np.append(indices, 1.0))[:3]
    ids = {c: table.index(c) for c in measures}
    scan = scans.encode_scan(volume, layers, ids, window, focus)
    no_scan = "" if scan else "too many structures for the viewer"
  drawn = slices.draw_slices(image.array, canonical, table.names, image.spacing, window, indices)
  return Case(name, measures, grid_facts(volume), drawn, scan, no_scan, tuple(warnings))


def error_map(predicted: Mapping[str, np.ndarray],
              truth: Mapping[str, np.ndarray]) -> np.ndarray:
  """Maps the differences of prediction and truth.

  Args:
    predicted: class → bool mask; a missing class counts as empty.
    truth: annotated class → three-valued mask. Unlabelled voxels and classes that are not annotated
      are never errors.

  Returns:
    uint8: `slices.EXTRA`, `slices.MISSED`, and `slices.MIXED` where both apply.
  """
  errors = np.zeros(next(iter(truth.values())).shape, np.uint8)
  for name, true in truth.items():
    mask = predicted.get(name)
    if mask is None:
      mask = np.zeros(true.shape, bool)
    errors |= (mask & (true == NEGATIVE)).astype(np.uint8) * np.uint8(slices.EXTRA)
    errors |= (~mask & (true == POSITIVE)).astype(np.uint8) * np.uint8(slices.MISSED)
  return errors


def structure_sizes(label: Volume, values: Mapping[str, int]) -> dict[str, dict[str, float]]:
  """Measures the size of each class in a label map.

  Args:
    label: label map.
    values: class → its value in the map.

  Returns:
    Class → {"volume_ml": …}, in 2-D {"area_px": …}.
  """
  counts = np.zeros(1 + max(max(values.values(), default=0), int(label.array.max())), np.int64)
  for plane in np.moveaxis(label.array, -1, 0):  # bincount makes a 64-bit copy
    plane_counts = np.bincount(plane.ravel())
    counts[:len(plane_counts)] += plane_counts
  key = "volume_ml" if label.ndim == 3 else "area_px"
  return {name: {key: metrics.size(int(counts[value]), label.spacing)}
          for name, value in values.items()}


def grid_facts(volume: Volume) -> str:
  """Formats size and spacing of an image, in the axis order of its file."""
  shape = " × ".join(map(str, volume.geometry.shape))
  if volume.ndim == 2:
    return f"{shape} pixels"
  return f"{shape} voxels of {' × '.join(f'{s:.3g}' for s in volume.spacing)} mm"
