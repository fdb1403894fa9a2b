"""Guesses the modality of the images of a dataset that does not declare it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from condseg_jax.datasets.raw import RawCase
from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.geometry import Volume

IMAGES = 5  # of a dataset that are read, evenly spaced over its cases
SAMPLE = 10**6  # voxels of an image from which its statistics are estimated
DICOM = {"CT": "ct", "MR": "mr"}
AIR_HU = -800.0  # air, and the padding outside of the field of view, lie below
AIR_SHARE = 0.01  # of the voxels of a CT; more even in the middle of an abdomen
HU = (-32_768.0, 32_767.0)  # range in which CTs are stored
UNDERSHOOT = 0.01  # share of the voxels of an MR image that interpolation may make negative
# Water is at 1024 in a CT that was stored without its intercept; so many voxels of a body are near.
SHIFTED_WATER, SHIFTED_SHARE = (900.0, 1250.0), 0.2
FULL_SCALES = (1.0, 255.0, 4095.0, 65535.0)  # where the values of rescaled images end


class Guess(NamedTuple):
  """A modality.

  Attributes:
    modality: `ct`, `mr` or `rgb`; "" if it cannot be known.
    reason: what it was inferred from, or what prevents it.
  """

  modality: str
  reason: str


class _Statistics(NamedTuple):
  lowest: float
  highest: float
  air: float  # shares of the voxels
  negative: float
  water: float  # where a shifted CT has it
  whole: bool


def guess_modality(cases: Sequence[RawCase]) -> Guess:
  """Infers the modality of images from DICOM headers, or from their channels and intensities.

  Args:
    cases: of a dataset, at least one.

  Images that cannot be read are passed over.

  Raises:
    InputError: none of them can be read.
  """
  chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, IMAGES).round().astype(int))]
  declared, statistics, errors = set[str](), list[_Statistics](), list[InputError]()
  for case in chosen:
    try:
      name = files.modality(case.image, case.series)
      if name:
        declared.add(name)
        continue
      volume = files.read_volume(case.image, case.series)
    except InputError as error:
      errors.append(error)
      continue
    if volume.ndim == 2:
      channels = volume.array.shape[-1] if volume.array.ndim > 2 else 1
      return Guess("rgb" if channels == 3 else "", f"its images are pictures of {channels} "
                   f"channel{'s' * (channels > 1)}")
    statistics.append(_statistics(volume))
  if declared:
    known = {DICOM.get(name, "") for name in declared}
    return Guess(known.pop() if len(known) == 1 else "",
                 f"its DICOM headers say {' and '.join(sorted(declared))}")
  if not statistics:
    raise errors[0]
  return _from_statistics(statistics)


def _statistics(volume: Volume) -> _Statistics:
  step = max(1, int(np.ceil((volume.array.size / SAMPLE) ** (1 / volume.ndim))))
  values = volume.array[(slice(None, None, step),) * volume.ndim].astype(np.float64)
  low, high = SHIFTED_WATER
  return _Statistics(float(values.min()), float(values.max()), float(np.mean(values < AIR_HU)),
                     float(np.mean(values < 0)), float(np.mean((values > low) & (values < high))),
                     bool(np.all(values == np.rint(values))))


def _from_statistics(images: Sequence[_Statistics]) -> Guess:
  lowest, highest = min(s.lowest for s in images), max(s.highest for s in images)
  numbers = "whole numbers" if all(s.whole for s in images) else "numbers"
  values = f"values are {numbers} from {lowest:g} to {highest:g}"
  air = min(s.air for s in images)
  if air >= AIR_SHARE and lowest >= HU[0] and highest <= HU[1]:
    return Guess("ct", f"{values}, at least {air:.0%} of an image lie below {AIR_HU:g}, like air "
                 "in CT")
  if max(s.negative for s in images) > UNDERSHOOT:
    return Guess("", f"{values}, which are negative without air as in CT")
  if max(s.water for s in images) >= SHIFTED_SHARE and numbers == "whole numbers":
    return Guess("", f"{values}, many near 1024, as in MR or in CT without its rescale intercept")
  ends = sorted({s.highest for s in images})
  if ends[-1] in FULL_SCALES and (len(ends) == 1 or ends[-1] == 1.0):
    return Guess("", f"{values}, as in images that were rescaled")
  return Guess("mr", f"{values}, not negative and without a common scale, as in MR (images end at "
               f"{', '.join(f'{end:g}' for end in ends)})")
