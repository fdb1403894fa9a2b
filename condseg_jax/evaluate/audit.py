"""Training masks ranked by how little the network that did not see them agrees.

    score = median agreement of the class - agreement,   at least 0

with the `agreement` of a mask and the out-of-fold prediction of its case. A class that is hard
everywhere is not suspicious for that, and one that the network hardly finds says little of its
masks; a mask that fits far worse than the others of its class is. What is wrong is a guess: the
change of the mask that makes it agree with the prediction.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED

GAIN = 0.2  # of Dice, from which on a change of the mask explains the disagreement
LOPSIDED = 2.0  # ratio of missing to surplus voxels from which on one of them is named
AXES = "DHW"
COARSE = 2.0  # axes of voxels that are longer than the shortest side by this have none to spare

Disagreement = tuple[str, str, float, float, str]  # case, class, agreement, Dice, kind


class Row(NamedTuple):
  """A mask.

  Attributes:
    case: its case, see `data.store.Case.key`.
    class_name: its class.
    score: from 0, as expected, to 1.
    kind: a guess at what is wrong, if anything is.
    dice: of the mask and the out-of-fold prediction.
  """

  case: str
  class_name: str
  score: float
  kind: str
  dice: float


def compare(mask: np.ndarray, label: np.ndarray, values: Mapping[str, int], name: str,
            spacing: Sequence[float]) -> tuple[float, float, str]:
  """Compares a mask with what was found in its case.

  Args:
    mask: three-valued, uint8 [*shape]; unlabelled voxels do not count.
    label: label map [*shape] of what was found, 0 for background.
    values: class → its value in the label map, for all classes of the network.
    name: class of the mask.
    spacing: of the voxels along each axis.

  Returns:
    The agreement and the Dice, both 1 if both are empty, and the kind: `missing structure` (nothing
    is annotated, but something found), `not found`, `exchanged with CLASS`, `mirrored along AXIS`,
    `shifted`, `missing part`, `false region` or `border`.
  """
  labelled, given = mask != UNLABELLED, mask == POSITIVE
  seen = (label == values[name]) & labelled
  dice, kind = _explained(given, seen, labelled, label, values, name)
  return agreement(given, seen, spacing), dice, kind


def agreement(given: np.ndarray, seen: np.ndarray, spacing: Sequence[float]) -> float:
  """Computes how much of two masks agrees, but for their rims.

      1 - (|(A ∖ B) ∘ b| + |(B ∖ A) ∘ b|) / (|A| + |B|)

  with the morphological opening by a box b of 3 voxels (1 along axes with voxels `COARSE` times as
  long as the shortest): borders are drawn differently everywhere, and what is wrong is thicker. Of
  structures that are no thicker themselves, most of which the opening removes, it is the Dice.

  Args:
    given: bool [*shape].
    seen: bool [*shape].
    spacing: of the voxels along each axis.

  Returns:
    From 0 to 1, which it is if both are empty.
  """
  size = int(given.sum()) + int(seen.sum())
  if not size:
    return 1.0
  box = ndimage.find_objects((given | seen).astype(np.uint8))[0]
  given, seen = given[box], seen[box]
  axes = [axis for axis, length in enumerate(spacing) if length < COARSE * min(spacing)]
  thick = lambda region: int(_opened(region, axes).sum())
  if 2 * (thick(given) + thick(seen)) < size:
    return _dice(given, seen)
  return 1 - (thick(given & ~seen) + thick(seen & ~given)) / size


def _opened(region: np.ndarray, axes: Sequence[int]) -> np.ndarray:
  """Returns the opening of a bool region by a box of 3 voxels along some axes."""
  region = np.pad(region, 1)
  for combine in (np.logical_and, np.logical_or):  # erosion, dilation
    for axis in axes:
      before = np.moveaxis(region, axis, 0)
      after = before.copy()
      combine(after[1:], before[:-1], out=after[1:])
      combine(after[:-1], before[1:], out=after[:-1])
      region = np.moveaxis(after, 0, axis)
  return region


def _explained(given: np.ndarray, seen: np.ndarray, labelled: np.ndarray, label: np.ndarray,
               values: Mapping[str, int], name: str) -> tuple[float, str]:
  """Returns Dice and kind, see `compare`."""
  size = int(given.sum())
  # Dice with every class, from two passes over the volume.
  top = max(values.values()) + 1
  common = np.bincount(label[given], minlength=top)
  sizes = np.bincount(label[labelled], minlength=top)
  dice_of = {key: 2 * int(common[v]) / max(size + int(sizes[v]), 1) for key, v in values.items()}
  dice = dice_of.pop(name)
  explained = [(other, f"exchanged with {rival}") for rival, other in dice_of.items()]
  if size and seen.any():
    explained += [(_dice(np.flip(given, axis), seen), f"mirrored along {letter}")
                  for axis, letter in enumerate(AXES[-given.ndim:])]
    explained.append((_dice(_shifted(given, seen), seen), "shifted"))
  best, kind = max(explained, key=lambda pair: pair[0], default=(0.0, ""))  # the first of equals
  if best >= dice + GAIN:
    return dice, kind
  if not seen.any():
    return (0.0, "not found") if size else (1.0, "border")
  if not size:
    return 0.0, "missing structure"
  missing, surplus = int((seen & ~given).sum()), int((given & ~seen).sum())
  if missing > LOPSIDED * surplus:
    return dice, "missing part"
  return dice, "false region" if surplus > LOPSIDED * missing else "border"


def rank(compared: Iterable[Disagreement]) -> list[Row]:
  """Ranks masks, the most suspicious first; equal ones by case and class."""
  compared = sorted(compared)
  by_class = lambda entry: entry[1]
  median = {name: float(np.median([agreed for _, _, agreed, _, _ in group])) for name, group in
            itertools.groupby(sorted(compared, key=by_class), key=by_class)}
  rows = [Row(case, name, max(0.0, median[name] - agreed), kind, dice)
          for case, name, agreed, dice, kind in compared]
  return sorted(rows, key=lambda row: -row.score)


def to_json(rows: Sequence[Row]) -> dict:
  """Returns the ranking, JSON-compatible."""
  return {"rows": [{"case": row.case, "class": row.class_name, "score": round(row.score, 6),
                    "kind": row.kind, "dice": round(row.dice, 6)} for row in rows]}


def _shifted(given: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """Moves a mask by whole voxels so that its centroid is that of another."""
  centre = lambda mask: np.array([places.mean() for places in np.nonzero(mask)])
  steps = np.rint(centre(seen) - centre(given)).astype(int)
  out = np.zeros_like(given)
  sides = [(slice(max(s, 0), n + min(s, 0)), slice(max(-s, 0), n - max(s, 0)))
           for s, n in zip(steps, given.shape, strict=True)]
  out[tuple(to for to, _ in sides)] = given[tuple(source for _, source in sides)]
  return out


def _dice(one: np.ndarray, other: np.ndarray) -> float:
  return 2 * int((one & other).sum()) / (int(one.sum()) + int(other.sum()))
