"""Checks whether an image resembles those a model was trained on.

A network returns a result for any input. An image that is clearly of another kind is refused, an
unusual one is flagged; each finding is one line with a cure. The checks are few and coarse: an
image like the training cases must pass without findings, and no check considers anatomy.

Older runs have no record of the training set; the checks then rely on the plan, with wider ranges.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import os
from typing import NamedTuple

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.formats.voxels import planes
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import oblique_degrees
from condseg_jax.geometry import shear
from condseg_jax.geometry import Volume
from condseg_jax.plan import Plan

REFUSE, FLAG = "refuse", "flag"
# Outside of the trained range by a factor of 2, a structure appears one network level away from
# where it was learned; by 8, three levels away, of five at most: most of it is lost.
FAR, TOO_FAR = 2.0, 8.0
PLAN_RANGE = 2.0  # assumed spread of a training set around its median if it is not recorded
# Air is at -1000 HU, fat at -100, so that values which never fall below 0 are not HU; but a model
# may have been trained on shifted values: no tissue has its darkest voxels above 500 HU.
SHIFTED_HU = 500.0
SCALED = 20.0  # largest span of a standardised or 0-to-1 image; CT noise alone spans more
AIR_HU = -200.0  # MR magnitudes are not negative, nor does noise reach this far; air in CT does
FREE_DEGREES = 30.0  # covered by the rotations of training augmentation
SHEAR_DEGREES = 5.0  # 35 mm across a body
SAMPLE = 10**6  # voxels from which percentiles are estimated


class Finding(NamedTuple):
  """One defect or peculiarity of an image.

  Attributes:
    severity: `refuse` or `flag`.
    kind: of the defect, in one word.
    reason: what is wrong, as in `InputError`.
    cure: what the user can do, as in `InputError`.
    final: True if nothing can be computed, so that the refusal cannot be overridden.
  """

  severity: str
  kind: str
  reason: str
  cure: str
  final: bool = False


def check_image(volume: Volume, plan: Plan, training: Mapping | None = None, *,
                modality: str = "") -> list[Finding]:
  """Returns the findings for an image; none if it resembles those a model was trained on.

  Args:
    volume: as read from a file, on any grid.
    plan: of the model.
    training: pooled `fingerprint` of the model's training set from its checkpoint; None or {} if it
      is not recorded.
    modality: DICOM modality given in the file (CT, MR, …); "" if there is none.
  """
  findings = [*_shape(volume, plan)] or [*_values(volume)]
  if any(finding.final for finding in findings):
    return findings
  if not findings:
    findings += _modality(_sample(volume), plan, training or {}, modality)
  return [*findings, *_geometry(volume, plan, training or {})]


def enforce(subject: str | os.PathLike, findings: Iterable[Finding], *, force: bool = False,
            switch: str = "force") -> list[str]:
  """Raises the first refusal, else returns the findings as lines of text.

  Args:
    subject: the file, for the error.
    findings: from `check_image`.
    force: ignore refusals that are not final.
    switch: the caller's name for `force`, for the error.

  Raises:
    InputError: the image is refused.
  """
  findings = list(findings)
  for finding in findings:
    if finding.severity == REFUSE and (finding.final or not force):
      cure = finding.cure if finding.final else f"{finding.cure}, or override with {switch}"
      raise InputError(subject, finding.reason, cure, kind=finding.kind)
  return [f"{finding.reason} ({finding.cure})" for finding in findings]


def _shape(volume: Volume, plan: Plan) -> Iterable[Finding]:
  if volume.ndim != len(plan.spacing):
    yield Finding(REFUSE, "axes", f"has {volume.ndim} axes, the model expects {len(plan.spacing)}",
                  f"use a model trained on {volume.ndim}-D images", final=True)
    return
  channels = volume.array.shape[-1] if volume.array.ndim > volume.ndim else 1
  if channels != plan.channels:
    cure = "convert it to greyscale" if channels == 3 else "extract a single volume"
    yield Finding(REFUSE, "channels", f"has {channels} channels, the model expects {plan.channels}",
                  cure if plan.channels == 1 else "convert it to RGB", final=True)


def _values(volume: Volume) -> Iterable[Finding]:
  array = volume.array
  bad = 0 if array.dtype.kind != "f" else sum(
      np.count_nonzero(~np.isfinite(plane)) for plane in planes(array))
  if bad:
    yield Finding(REFUSE, "not_finite", f"{bad} of {array.size} voxels are NaN or Inf",
                  "replace them, e.g. with the value of air", final=True)
  elif array.min() == array.max():
    yield Finding(REFUSE, "constant", f"is empty: every voxel is {array.min():g}",
                  "check the conversion, or export it again")


def _modality(sample: np.ndarray, plan: Plan, training: Mapping,
              modality: str) -> Iterable[Finding]:
  if modality and plan.modality in ("ct", "mr") and modality.lower() != plan.modality:
    yield Finding(REFUSE, "modality", f"has modality {modality}, the model was trained on "
                  f"{plan.modality.upper()}", "select the right series, or use another model")
    return
  lowest, highest = float(sample.min()), float(sample.max())
  low, high = (float(x) for x in np.percentile(sample, (0.5, 99.5)))
  if plan.modality == "rgb":
    if lowest < 0 or highest > 255 or highest <= 1:
      yield Finding(REFUSE, "range", f"values range from {lowest:g} to {highest:g}, the model "
                    "expects 0 to 255", "rescale the image to 0 to 255")
    return
  if plan.modality == "mr":
    trained = (training.get("intensity") or {}).get("p0.5", 0.0)
    if low < AIR_HU < trained:
      yield Finding(REFUSE, "modality", f"values go down to {low:.0f}, like air in CT; the model "
                    "was trained on MR", "use an MR image, or another model")
    elif float(sample.std()) > high - low:
      yield Finding(FLAG, "range", f"has outliers: 99 % of the values lie between {low:g} and "
                    f"{high:g}, all between {lowest:g} and {highest:g}", "remove the outliers")
    return
  if plan.low >= SHIFTED_HU:
    return
  if high - low < SCALED:
    yield Finding(REFUSE, "modality", f"values from {low:.3g} to {high:.3g} are not in HU, the "
                  "unit of the training images", "convert the original again, without rescaling")
  elif low >= 0:  # a few voxels may undershoot even if a whole CT is shifted by 1024
    count = "no" if lowest >= 0 else "almost no"
    yield Finding(REFUSE, "modality", f"{count} value is negative, unlike air and fat in CT: MR, "
                  "or not in HU", "use a CT, and apply its rescale slope and intercept")
  elif not np.any((sample >= plan.low) & (sample <= plan.high)):
    yield Finding(REFUSE, "range", f"no voxel lies between {plan.low:.0f} and {plan.high:.0f} HU, "
                  "the range of the model's structures", "check the unit (HU) and the body region")


def _geometry(volume: Volume, plan: Plan, training: Mapping) -> Iterable[Finding]:
  grid = canonical_geometry(volume.geometry)
  names, unit = (("SI", "AP", "LR"), "mm") if grid.ndim == 3 else (("height", "width"), "px")
  assumed = {"min": np.divide(plan.spacing, PLAN_RANGE),
             "max": np.multiply(plan.spacing, PLAN_RANGE)}
  spacing = training.get("native_spacing", assumed)
  window = np.multiply(plan.subvolume, plan.spacing)
  field = training.get("native_field", {"min": window / PLAN_RANGE, "max": [np.inf] * grid.ndim})
  extent = np.multiply(grid.shape, grid.spacing)
  for axis, name in enumerate(names):
    if grid.shape[axis] == 1:
      yield Finding(REFUSE, "thin", f"has a single slice along {name}, the model expects volumes",
                    "use the whole series")
      continue
    least, most = spacing["min"][axis], spacing["max"][axis]
    coarse, fine = grid.spacing[axis] / most, least / grid.spacing[axis]
    if coarse >= FAR or fine >= TOO_FAR:  # finer images are resampled to the plan's spacing
      yield Finding(REFUSE if coarse >= TOO_FAR else FLAG, "spacing",
                    f"voxels of {grid.spacing[axis]:.3g} {unit} along {name}, trained on "
                    f"{least:.3g} to {most:.3g}",
                    "check the header, or use a series with such spacing")
    least, most = field["min"][axis], field["max"][axis]
    small, large = least / extent[axis], extent[axis] / most
    if max(small, large) >= FAR:
      known = f"{least:.3g}" if np.isinf(most) else f"{least:.3g} to {most:.3g}"
      yield Finding(REFUSE if small >= TOO_FAR else FLAG, "field",
                    f"covers {extent[axis]:.3g} {unit} along {name}, trained on {known}",
                    "use the whole series" if small > 1 else
                    "crop it to the body region of the training images")
  if grid.ndim == 3:
    yield from _orientation(volume.affine, training)


def _orientation(affine: np.ndarray, training: Mapping) -> Iterable[Finding]:
  trained = training.get("oblique_degrees", {"max": [0.0]})["max"][0]
  oblique = oblique_degrees(affine)
  if oblique > trained + FREE_DEGREES:
    yield Finding(FLAG, "orientation", f"is rotated by {oblique:.0f} degrees from the body axes, "
                  f"trained on at most {trained:.0f}",
                  "check the header, or resample it along the body axes")
  if shear(affine) > SHEAR_DEGREES:
    yield Finding(FLAG, "orientation", f"its axes deviate by {shear(affine):.0f} degrees from "
                  "perpendicular", "correct the gantry tilt first, e.g. with dcm2niix")


def _sample(volume: Volume) -> np.ndarray:
  """Returns every n-th voxel along every axis, float32; all voxels of a small image."""
  step = int(np.ceil((volume.array.size / SAMPLE) ** (1 / volume.ndim)))
  return volume.array[(slice(None, None, max(1, step)),) * volume.ndim].astype(np.float32)
