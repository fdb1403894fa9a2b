"""What is found wrong with data: one record for each defect, and how it is shown."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError

ERROR, WARNING = "error", "warning"
FEW = 4  # with fewer cases nothing can be called an outlier
SPACING_FACTOR = 4.0  # from the median of the dataset, along any axis
INTENSITY_SPREAD = 8.0  # in robust standard deviations
INTENSITY_HU = 150.0  # and at least so far from the median


@dataclasses.dataclass(frozen=True)
class Finding:
  """One defect.

  Attributes:
    severity: `error`, or `warning` for what can be trained on.
    name: of the kind of defect, such as `truncated`.
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
    """What reading a file failed with."""
    return cls(ERROR, error.kind, error.subject, error.reason, error.cure)


class Seen(NamedTuple):
  """An image that was read: the digest of its voxels, its split, and where it lies."""

  digest: str
  split: str
  file: str


class Measured(NamedTuple):
  """A case among others: where it lies, and what should be like theirs.

  Attributes:
    file: where it lies.
    spacing: of the original, in mm.
    intensity: mean where some class is, in HU; NaN where that is unknown, or has no unit.
  """

  file: str
  spacing: Sequence[float]
  intensity: float


def class_findings(root, positives: Mapping[str, Mapping[str, int]]) -> list[Finding]:
  """Classes that no case shows, and masks without a voxel of theirs.

  Args:
    root: the dataset.
    positives: class → id of each case that annotates it → number of its positive voxels.
  """
  findings = []
  for name, cases in positives.items():
    empty = [case_id for case_id, count in cases.items() if not count]
    if cases and len(empty) == len(cases):
      findings.append(Finding(ERROR, "class_nowhere", str(root),
                              f"no case has a voxel of the class {name!r}",
                              "correct its label value, or leave it out with --keep"))
    elif empty:
      findings.append(Finding(WARNING, "empty_mask", str(root), f"{len(empty)} of {len(cases)} "
                              f"masks of {name!r} are empty: {', '.join(empty)}",
                              "check that the class is really absent there"))
  return findings


def training_findings(root, annotated: Iterable[tuple[str, Sequence[str]]]) -> list[Finding]:
  """Classes that are annotated, but in no training case; none for a set without training cases.

  Args:
    root: the dataset.
    annotated: split and annotated classes of every case.
  """
  annotated = list(annotated)
  learned = {name for split, names in annotated if split == "train" for name in names}
  others = dict.fromkeys(name for _, names in annotated for name in names if name not in learned)
  return [Finding(WARNING, "class_nowhere", str(root),
                  f"no training case annotates the class {name!r}",
                  "give it training cases; without any it is not learned")
          for name in others if learned]


def outlier_findings(cases: Sequence[Measured]) -> Iterable[Finding]:
  """Cases of one dataset, of as many axes, whose spacing or intensity is far from the others'."""
  if len(cases) >= FEW:
    usual = np.median([case.spacing for case in cases], axis=0)
    for case in cases:
      if np.abs(np.log(np.divide(case.spacing, usual))).max() > np.log(SPACING_FACTOR):
        told = " x ".join(f"{s:g}" for s in case.spacing)
        yield Finding(WARNING, "spacing_outlier", case.file,
                      f"spacing {told} mm, usual {' x '.join(f'{s:g}' for s in usual)} mm",
                      "check the voxel size in its header")
  known = [case for case in cases if np.isfinite(case.intensity)]
  if len(known) >= FEW:
    values = np.array([case.intensity for case in known])
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    for case in known:
      if abs(case.intensity - middle) > max(INTENSITY_HU, INTENSITY_SPREAD * spread):
        yield Finding(WARNING, "intensity_outlier", case.file,
                      f"mean {case.intensity:.0f} HU where classes are, usual {middle:.0f} HU",
                      "check that it is stored in HU (rescale slope and intercept)")


def leak_findings(seen: Iterable[Seen]) -> list[Finding]:
  """Images that are in more than one split, which would flatter the scores."""
  same = collections.defaultdict(list)
  for one in seen:
    same[one.digest].append(one)
  findings = []
  for first, *others in same.values():
    other = next((one for one in others if one.split != first.split), None)
    if other:
      findings.append(Finding(ERROR, "duplicate", other.file,
                              f"is in {other.split}, with the same voxels as {first.file} in "
                              f"{first.split}", "remove one of them"))
  return findings


def table(findings: Sequence[Finding], root) -> str:
  """Findings as aligned lines, errors first; files are named relative to `root`."""
  header = ("", "name", "file", "finding", "cure")
  rows = [(f.severity, f.name, _relative(f.file, root), f.finding, f.cure)
          for f in sorted(findings, key=lambda f: (f.severity, f.name, f.file))]
  # A cell of many ids may run over its column; it does not widen that of all.
  widths = [min(60, max(len(row[i]) for row in (header, *rows))) for i in range(4)]
  return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)),
                              row[4]]) for row in (header, *rows))


def _relative(file: str, root) -> str:
  inside = os.path.relpath(file, root) if os.path.isabs(file) else file
  return file if inside.startswith(".") else inside
