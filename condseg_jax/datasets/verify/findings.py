"""Findings of a data check: one record for each defect, and their table."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.errors import printable

ERROR, WARNING = "error", "warning"
FEW = 4  # minimal number of cases for the detection of outliers
SPACING_FACTOR = 4.0  # an outlier differs from the median by this factor along an axis
INTENSITY_SPREAD = 8.0  # an outlier differs from the median by so many robust standard deviations
INTENSITY_HU = 150.0  # and by so many HU


@dataclasses.dataclass(frozen=True)
class Finding:
  """One defect.

  Attributes:
    severity: `error`, or `warning` if training is possible.
    name: kind of defect, such as `truncated`.
    file: the file or folder at fault.
    finding: what is wrong with it.
    cure: what can be done about it.
  """

  severity: str
  name: str
  file: str
  finding: str
  cure: str

  @classmethod
  def of(cls, error: InputError) -> "Finding":
    """Creates a finding from an error of reading."""
    return cls(ERROR, error.kind, error.subject, error.reason, error.cure)


class ImageRecord(NamedTuple):
  """An image that was read: digest of its voxels, split and path."""

  digest: str
  split: str
  file: str


class CaseStatistics(NamedTuple):
  """Properties of a case in which outliers are detected.

  Attributes:
    file: path of the case.
    spacing: native spacing in mm.
    intensity: mean intensity of positive voxels in HU; NaN if unknown, or not CT.
  """

  file: str
  spacing: Sequence[float]
  intensity: float


def class_findings(root: str | os.PathLike,
                   positives: Mapping[str, Mapping[str, int]]) -> list[Finding]:
  """Finds classes without a positive voxel in any case, and empty masks.

  Args:
    root: the dataset.
    positives: class → id of each case that annotates it → number of positive voxels.
  """
  findings = []
  for name, cases in positives.items():
    empty = [case_id for case_id, count in cases.items() if not count]
    if cases and len(empty) == len(cases):
      findings.append(Finding(ERROR, "class_nowhere", str(root),
                              f"no case has a voxel of the class {name!r}",
                              "correct its label value, or exclude the class"))
    elif empty:
      findings.append(Finding(WARNING, "empty_mask", str(root), f"{len(empty)} of {len(cases)} "
                              f"masks of {name!r} are empty: {', '.join(empty)}",
                              "check that the class is absent in these cases"))
  return findings


def training_findings(root: str | os.PathLike,
                      annotated: Iterable[tuple[str, Sequence[str]]]) -> list[Finding]:
  """Finds classes that no training case annotates; none in a dataset without training cases.

  Args:
    root: the dataset.
    annotated: split and annotated classes of every case.
  """
  annotated = list(annotated)
  trained = {name for split, names in annotated if split == "train" for name in names}
  others = dict.fromkeys(name for _, names in annotated for name in names if name not in trained)
  return [Finding(WARNING, "class_nowhere", str(root),
                  f"no training case annotates the class {name!r}",
                  "add training cases of it; otherwise the class is not learned")
          for name in others if trained]


def outlier_findings(cases: Sequence[CaseStatistics]) -> Iterable[Finding]:
  """Finds cases of one dataset whose spacing or intensity differs much from the others'.

  Args:
    cases: all with the same number of axes.
  """
  if len(cases) >= FEW:
    median = np.median([case.spacing for case in cases], axis=0)
    for case in cases:
      if np.abs(np.log(np.divide(case.spacing, median))).max() > np.log(SPACING_FACTOR):
        spacing = " x ".join(f"{s:g}" for s in case.spacing)
        yield Finding(WARNING, "spacing_outlier", case.file,
                      f"spacing {spacing} mm, median {' x '.join(f'{s:g}' for s in median)} mm",
                      "check the voxel size in its header")
  known = [case for case in cases if np.isfinite(case.intensity)]
  if len(known) >= FEW:
    values = np.array([case.intensity for case in known])
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    for case in known:
      if abs(case.intensity - middle) > max(INTENSITY_HU, INTENSITY_SPREAD * spread):
        yield Finding(WARNING, "intensity_outlier", case.file,
                      f"mean {case.intensity:.0f} HU of positive voxels, median {middle:.0f} HU",
                      "check that it is stored in HU (rescale slope and intercept)")


def leak_findings(images: Iterable[ImageRecord]) -> list[Finding]:
  """Finds images that are in more than one split, which would bias the scores."""
  groups = collections.defaultdict(list)
  for image in images:
    groups[image.digest].append(image)
  findings = []
  for first, *others in groups.values():
    other = next((image for image in others if image.split != first.split), None)
    if other:
      findings.append(Finding(ERROR, "duplicate", other.file,
                              f"is in {other.split}, with the same voxels as {first.file} in "
                              f"{first.split}", "remove one of them"))
  return findings


def table(findings: Sequence[Finding], root: str | os.PathLike) -> str:
  """Formats findings as aligned lines, errors first; file names are relative to `root`."""
  header = ("", "name", "file", "finding", "cure")
  rows = [tuple(map(printable, (f.severity, f.name, _relative(f.file, root), f.finding, f.cure)))
          for f in sorted(findings, key=lambda f: (f.severity, f.name, f.file))]
  # A cell with many ids may exceed the width of its column.
  widths = [min(60, max(len(row[i]) for row in (header, *rows))) for i in range(4)]
  return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)),
                              row[4]]) for row in (header, *rows))


def _relative(file: str, root: str | os.PathLike) -> str:
  inside = os.path.relpath(file, root) if os.path.isabs(file) else file
  return file if inside.startswith(".") else inside
