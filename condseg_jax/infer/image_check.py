"""Whether an image is one that a model can be asked about, from its plan and its training set.

A network answers whatever it is shown. What is plainly another kind of image is refused, what is
unusual is flagged; each finding is one line with its cure. The checks are few and coarse: a case of
the trained kind must pass without a word, and no check looks at anatomy.

Without a record of the training set (older runs) only the plan is known, and the ranges are wider.
"""

from collections.abc import Iterable
from collections.abc import Mapping
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
# Beyond the trained range by a factor of 2 a structure is one level of the network away from where
# it was learned; by 8 it is three, of the five that there are at most: most of it is lost.
FAR, TOO_FAR = 2.0, 8.0
PLAN_RANGE = 2.0  # how far a training set may spread around its median, where it is not recorded
# Air is at -1000 HU, fat at -100, so that values which never fall below 0 are no HU; but a model
# may have learned from shifted ones: no tissue has its darkest voxels above 500 HU.
SHIFTED_HU = 500.0
SCALED = 20.0  # what a standardised or 0-to-1 image spans at most; CT noise alone spans more
AIR_HU = -200.0  # magnitudes of MR do not lie below 0, nor does noise reach this far; CT's air does
FREE_DEGREES = 30.0  # rotations that training makes by itself
SHEAR_DEGREES = 5.0  # 35 mm across a body
SAMPLE = 10**6  # voxels that stand for all where percentiles are asked for


class Finding(NamedTuple):
  """Something about an image.

  Attributes:
    severity: `refuse` or `flag`.
    kind: in one word.
    reason, cure: as of an `InputError`.
    final: True where nothing can be computed, whatever the user insists on.
  """

  severity: str
  kind: str
  reason: str
  cure: str
  final: bool = False


def check_image(volume: Volume, plan: Plan, training: Mapping | None = None, *,
                modality: str = "") -> list[Finding]:
  """What speaks against an image; nothing if it is like those a model was trained on.

  Args:
    volume: as read from a file, on any grid.
    plan: of the model.
    training: the pooled `fingerprint` of its training set, as its checkpoint holds it; None or {}
      where it holds none.
    modality: what the file says made the image, as DICOM calls it (CT, MR, …); "" if it does not.
  """
  findings = [*_form(volume, plan)] or [*_numbers(volume)]
  if any(one.final for one in findings):
    return findings
  if not findings:
    findings += _modality(_sample(volume), plan, training or {}, modality)
  return [*findings, *_geometry(volume, plan, training or {})]


def enforce(subject, findings: Iterable[Finding], *, force: bool = False,
            switch: str = "--force") -> list[str]:
  """The findings as lines to show, unless one stops the work.

  Args:
    subject: the file.
    findings: of `check_image`.
    force: go on past refusals where something can be computed at all.
    switch: by which the user asks for that.

  Raises:
    InputError: the image is refused.
  """
  findings = list(findings)
  for one in findings:
    if one.severity == REFUSE and (one.final or not force):
      cure = one.cure if one.final else f"{one.cure}; {switch} goes on"
      raise InputError(subject, one.reason, cure, kind=one.kind)
  return [f"{one.reason} ({one.cure})" for one in findings]


def _form(volume: Volume, plan: Plan) -> Iterable[Finding]:
  if volume.ndim != len(plan.spacing):
    yield Finding(REFUSE, "axes", f"has {volume.ndim} axes, the model was trained on "
                  f"{len(plan.spacing)}", "use a model for such images", final=True)
    return
  channels = volume.array.shape[-1] if volume.array.ndim > volume.ndim else 1
  wanted = plan.channels
  if channels != wanted:
    cure = "convert it to grey values" if channels == 3 else "name one volume of it"
    yield Finding(REFUSE, "channels", f"has {channels} channels, the model takes {wanted}",
                  cure if wanted == 1 else "convert it to colour", final=True)


def _numbers(volume: Volume) -> Iterable[Finding]:
  array = volume.array
  bad = 0 if array.dtype.kind != "f" else sum(
      np.count_nonzero(~np.isfinite(plane)) for plane in planes(array))
  if bad:
    yield Finding(REFUSE, "not_finite", f"{bad} of {array.size} voxels are NaN or Inf",
                  "replace them, e.g. by the value of air", final=True)
  elif array.min() == array.max():
    yield Finding(REFUSE, "constant", f"every voxel is {array.min():g}: an empty image",
                  "check the conversion, or export it again")


def _modality(sample: np.ndarray, plan: Plan, training: Mapping,
              modality: str) -> Iterable[Finding]:
  if modality and plan.modality in ("ct", "mr") and modality.lower() != plan.modality:
    yield Finding(REFUSE, "modality", f"is of the modality {modality}, the model was trained on "
                  f"{plan.modality.upper()}", "name the right series, or use another model")
    return
  lowest, highest = float(sample.min()), float(sample.max())
  low, high = (float(x) for x in np.percentile(sample, (0.5, 99.5)))
  if plan.modality == "rgb":
    if lowest < 0 or highest > 255 or highest <= 1:
      yield Finding(REFUSE, "range", f"values from {lowest:g} to {highest:g}, the model takes 0 to "
                    "255", "scale the picture to 0 to 255")
    return
  if plan.modality == "mr":
    trained = (training.get("intensity") or {}).get("p0.5", 0.0)
    if low < AIR_HU < trained:
      yield Finding(REFUSE, "modality", f"values reach {low:.0f}, as air does in CT; the model was "
                    "trained on MR", "name an MR image, or use another model")
    elif float(sample.std()) > high - low:
      yield Finding(FLAG, "range", f"a few voxels lie far from all others ({low:g} to {high:g}): "
                    f"the values reach from {lowest:g} to {highest:g}", "remove the outliers")
    return
  if plan.low >= SHIFTED_HU:
    return
  if high - low < SCALED:
    yield Finding(REFUSE, "modality", f"values from {low:.3g} to {high:.3g} are no HU, which the "
                  "model was trained on", "convert the original again, without scaling")
  elif low >= 0:  # a few voxels may undershoot where a whole CT lies 1024 too high
    few = "no" if lowest >= 0 else "hardly any"
    yield Finding(REFUSE, "modality", f"{few} value is negative, as air and fat are in CT: MR, or "
                  "not in HU", "name a CT, and apply its rescale slope and intercept")
  elif not np.any((sample >= plan.low) & (sample <= plan.high)):
    yield Finding(REFUSE, "range", f"no voxel lies between {plan.low:.0f} and {plan.high:.0f} HU, "
                  "where the structures of the model do", "check that it is in HU, and what it "
                  "shows")


def _geometry(volume: Volume, plan: Plan, training: Mapping) -> Iterable[Finding]:
  grid = canonical_geometry(volume.geometry)
  names, unit = (("SI", "AP", "LR"), "mm") if grid.ndim == 3 else (("height", "width"), "px")
  around = {"min": np.divide(plan.spacing, PLAN_RANGE),
            "max": np.multiply(plan.spacing, PLAN_RANGE)}
  spacing = training.get("native_spacing", around)
  window = np.multiply(plan.subvolume, plan.spacing)
  field = training.get("native_field", {"min": window / PLAN_RANGE, "max": [np.inf] * grid.ndim})
  extent = np.multiply(grid.shape, grid.spacing)
  for axis, name in enumerate(names):
    if grid.shape[axis] == 1:
      yield Finding(REFUSE, "thin", f"is a single slice across {name}, the model takes volumes",
                    "name the whole series")
      continue
    least, most = spacing["min"][axis], spacing["max"][axis]
    coarse, fine = grid.spacing[axis] / most, least / grid.spacing[axis]
    if coarse >= FAR or fine >= TOO_FAR:  # what is finer is brought to the plan's spacing
      yield Finding(REFUSE if coarse >= TOO_FAR else FLAG, "spacing",
                    f"voxels of {grid.spacing[axis]:.3g} {unit} along {name}, trained on "
                    f"{least:.3g} to {most:.3g}", "check the header; name a series of such spacing")
    least, most = field["min"][axis], field["max"][axis]
    small, large = least / extent[axis], extent[axis] / most
    if max(small, large) >= FAR:
      known = f"{least:.3g}" if np.isinf(most) else f"{least:.3g} to {most:.3g}"
      yield Finding(REFUSE if small >= TOO_FAR else FLAG, "field",
                    f"shows {extent[axis]:.3g} {unit} along {name}, trained on {known}",
                    "name the whole series" if small > 1 else
                    "crop it to the part of the body trained on")
  if grid.ndim == 3:
    yield from _orientation(volume.affine, training)


def _orientation(affine: np.ndarray, training: Mapping) -> Iterable[Finding]:
  trained = training.get("oblique_degrees", {"max": [0.0]})["max"][0]
  oblique = oblique_degrees(affine)
  if oblique > trained + FREE_DEGREES:
    yield Finding(FLAG, "orientation", f"lies {oblique:.0f} degrees askew to the body, trained on "
                  f"at most {trained:.0f}", "check the header, or resample it along the body")
  if shear(affine) > SHEAR_DEGREES:
    yield Finding(FLAG, "orientation", f"its axes miss being perpendicular by {shear(affine):.0f} "
                  "degrees", "correct the gantry tilt first, e.g. with dcm2niix")


def _sample(volume: Volume) -> np.ndarray:
  """Every n-th voxel along every axis, float32; all of a small image."""
  step = int(np.ceil((volume.array.size / SAMPLE) ** (1 / volume.ndim)))
  return volume.array[(slice(None, None, max(1, step)),) * volume.ndim].astype(np.float32)
