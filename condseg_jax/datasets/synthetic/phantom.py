"""Abdominal CT phantoms: single-organ training sets and fully labelled test cases.

All organs are visible in every image, but each training set annotates one of them and has its own
scanner (`PROFILES`). A network that recognises the scanner instead of using the class condition
fails on the test cases, which annotate every organ for every scanner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path
import zlib

import numpy as np
from scipy.ndimage import gaussian_filter

from condseg_jax.datasets.synthetic.anatomy import draw_anatomy
from condseg_jax.datasets.synthetic.anatomy import label_map
from condseg_jax.datasets.synthetic.anatomy import ORGANS
from condseg_jax.datasets.synthetic.anatomy import TISSUE_ID
from condseg_jax.datasets.synthetic.anatomy import TISSUES
from condseg_jax.datasets.synthetic.random_field import smooth_field
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import Volume
from condseg_jax.system.atomic import write_text


@dataclass(frozen=True)
class Profile:
  """A scanner: properties that its images have in common.

  Attributes:
    noise_hu: sd of the noise in the body, in HU.
    grain: in-plane correlation length of the noise in voxels (reconstruction kernel).
    blur: in-plane point spread (Gaussian sd) in voxels.
    thickness: slice distance as a multiple of the size's spacing.
    pixel: in-plane spacing as a multiple of the size's spacing.
    field: rows and columns as a multiple of the size's shape; values below 1 crop the flanks.
    offset_hu: calibration error in HU.
    axcodes: axis order of the file, RAS or LPS.
    circle: whether only the inscribed circle is reconstructed.
    couch: whether the couch is in the field of view.
  """

  noise_hu: float
  grain: float
  blur: float
  thickness: float
  pixel: float
  field: float
  offset_hu: float
  axcodes: str
  circle: bool = False
  couch: bool = False


PROFILES = {
  "liver": Profile(7.0, 0.7, 0.75, 1.0, 1.0, 1.0, 0.0, "RAS", circle=True),
  "spleen": Profile(14.0, 0.3, 0.5, 0.92, 0.93, 0.97, 6.0, "LPS", couch=True),
  "pancreas": Profile(10.0, 0.5, 0.6, 1.07, 1.06, 1.0, -5.0, "LPS"),
  "left_kidney": Profile(18.0, 0.6, 0.65, 0.95, 1.02, 1.0, -9.0, "RAS", circle=True, couch=True),
  "right_kidney": Profile(5.0, 0.9, 0.9, 1.1, 0.97, 1.0, 10.0, "RAS", couch=True),
}


@dataclass(frozen=True)
class Size:
  """Nominal shape in voxels and spacing in mm, both (D, H, W); a profile scales them slightly."""

  shape_DHW: tuple[int, int, int]
  spacing_DHW: tuple[float, float, float]


SIZES = {
  "quick": Size((32, 64, 64), (5.5, 5.5, 5.5)),
  "standard": Size((64, 128, 128), (2.75, 2.75, 2.75)),
  "fine": Size((72, 256, 256), (2.5, 1.4, 1.4)),
}


def image_of(tissue_DHW: np.ndarray, profile: Profile, rng: np.random.Generator) -> np.ndarray:
  """Simulates the CT image of a patient, int16 HU.

  Contrast phase and the mean of every tissue vary between cases; a smooth bias and a fine texture
  are added to the body; the profile determines blur, correlated noise, offset, couch and field of
  view.
  """
  soft = np.array([t.hu > -300 for t in TISSUES])[tissue_DHW]
  phase = rng.uniform(0, 1)
  mean_hu = np.array([t.hu + t.gain * phase + t.sd * rng.standard_normal() for t in TISSUES])
  tissue_DHW = _with_couch(tissue_DHW) if profile.couch else tissue_DHW
  image = mean_hu.astype(np.float32)[tissue_DHW]
  bias = 6 * smooth_field(rng, image.shape, [n / 2 for n in image.shape])
  texture = 4 * smooth_field(rng, image.shape, [n / 16 for n in image.shape])
  image = gaussian_filter(image + soft * (bias + texture), (0.35, profile.blur, profile.blur))
  noise = rng.standard_normal(image.shape, dtype=np.float32)
  noise = gaussian_filter(noise, (0, profile.grain, profile.grain))
  noise *= profile.noise_hu * rng.uniform(0.92, 1.08) / noise.std()
  image += noise * np.where(soft, 1, 0.6).astype(np.float32) + profile.offset_hu
  if profile.circle:
    h, w = ((np.arange(n) - (n - 1) / 2) / (n / 2) for n in image.shape[1:])
    image[:, h[:, None] ** 2 + w**2 > 1] = -1024
  return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _with_couch(tissue_DHW: np.ndarray) -> np.ndarray:
  """Adds the couch, a curved sheet below the body, where there is air."""
  _, height, width = tissue_DHW.shape
  bottom = np.flatnonzero(tissue_DHW.any(axis=(0, 2))).max() + 1 + height // 50
  w = np.linspace(-1, 1, width)
  row = np.arange(height)[:, None] - (bottom - height * 0.05 * w**2)
  sheet = (np.abs(row) < max(0.6, height / 110)) & (np.abs(w) < 0.75)
  return np.where(sheet & (tissue_DHW == 0), TISSUE_ID["couch"], tissue_DHW).astype(np.uint8)


def draw_case(
  scanner: str, case: int, *, size: str = "standard", seed: int = 0, split: str = "train"
) -> tuple[Volume, Volume]:
  """Draws one patient in one scanner; the result depends on the arguments only.

  Args:
    scanner: a key of `PROFILES`; named after the organ that its training set annotates.
    case: every combination is another patient.
    seed: see `case`.
    split: see `case`.
    size: a key of `SIZES`.

  Returns:
    The image (int16 HU) and the tissue map (uint8, an index into `TISSUES`), both with the axes
    (x, y, z) in the orientation of the scanner.
  """
  profile, nominal = PROFILES[scanner], SIZES[size]
  rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{scanner}".encode()), case])
  scale = (profile.thickness, profile.pixel, profile.pixel)
  spacing_DHW = [round(mm * k, 3) for mm, k in zip(nominal.spacing_DHW, scale, strict=True)]
  depth, *in_plane = nominal.shape_DHW
  shape_DHW = (round(depth / profile.thickness) + int(rng.integers(-1, 2)),
               *(round(n * profile.field) for n in in_plane))
  tissue_DHW = draw_anatomy(rng, shape_DHW, spacing_DHW, rng.normal(0, 5, 3))
  image_DHW = image_of(tissue_DHW, profile, rng)
  affine = np.diag([*spacing_DHW[::-1], 1.0])
  if profile.axcodes == "LPS":
    affine[:2] *= -1
  half = (np.array(shape_DHW[::-1]) - 1) / 2
  affine[:3, 3] = np.round(rng.normal(0, (15, 15, 200)) - affine[:3, :3] @ half, 2)
  return tuple(Volume(_stored(a, profile.axcodes), affine) for a in (image_DHW, tissue_DHW))


def _stored(array_DHW: np.ndarray, axcodes: str) -> np.ndarray:
  array = array_DHW.transpose(2, 1, 0)
  return array if axcodes == "LPS" else array[::-1, ::-1]


def write_abdomen(
  out: str | os.PathLike,
  *,
  organs: Sequence[str] = ("liver", "spleen", "pancreas"),
  size: str = "standard",
  cases_per_organ: int = 32,
  test_cases_per_profile: int = 6,
  seed: int = 0,
  every_organ: bool = False,
) -> None:
  """Writes `out/train/<organ>/` for every organ and `out/test/`, all in the MSD layout.

  A training set labels one organ 1 and everything else 0, the other organs included. The test set
  labels organs[i] with i + 1; its files are named profile-<scanner>_case-<number>, and like every
  labelled case of the MSD they are listed under "training".

  Args:
    out: folder; created if it is missing; files of the same name are replaced.
    organs: any of `ORGANS`.
    size: a key of `SIZES`; "quick" is for runs of minutes on a CPU.
    cases_per_organ: training cases in each set.
    test_cases_per_profile: test cases for each of the scanners in use.
    seed: non-negative; it determines all patients.
    every_organ: label all organs in the training sets, as in the test set: the same images under
      full supervision.

  Raises:
    InputError: an unknown organ or size, no organ, a duplicate organ.
  """
  organs = tuple(organs)
  if not organs or len(set(organs)) < len(organs) or not set(organs) <= set(ORGANS):
    raise InputError("organs", f"must be different organs of the phantom, not {', '.join(organs)}",
                     f"choose from: {', '.join(ORGANS)}", usage=True)
  if size not in SIZES:
    raise InputError("size", f"unknown size {size!r}", f"choose from: {', '.join(SIZES)}",
                     usage=True)
  for organ in organs:
    cases = [(organ, i, f"{organ}_{i:03d}") for i in range(cases_per_organ)]
    labelled = organs if every_organ else (organ,)
    _write_msd(Path(out) / "train" / organ, cases, labelled, size, seed, "train")
  cases = [(organ, i, f"profile-{organ}_case-{i:03d}") for organ in organs
           for i in range(test_cases_per_profile)]
  _write_msd(Path(out) / "test", cases, organs, size, seed, "test")


def _write_msd(folder: Path, cases: Sequence[tuple[str, int, str]], organs: Sequence[str],
               size: str, seed: int, split: str) -> None:
  for name in ("imagesTr", "labelsTr"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  listed = []
  for scanner, case, stem in cases:
    image, tissue = draw_case(scanner, case, size=size, seed=seed, split=split)
    label = Volume(label_map(tissue.array, organs), tissue.affine)
    listed.append({"image": f"./imagesTr/{stem}.nii.gz", "label": f"./labelsTr/{stem}.nii.gz"})
    write_nifti(folder / listed[-1]["image"], image)
    write_nifti(folder / listed[-1]["label"], label, label=True)
  index = {
    "name": f"abdomen phantom, {split}: {', '.join(organs)}",
    "description": "synthetic abdominal CT; no patient was scanned",
    "reference": "condseg_jax.datasets.synthetic.phantom", "licence": "CC0-1.0", "release": "1.0",
    "tensorImageSize": "3D", "modality": {"0": "CT"},
    "labels": {str(i): name for i, name in enumerate(("background", *organs))},
    "numTraining": len(listed), "numTest": 0, "training": listed, "test": [],
  }
  write_text(folder / "dataset.json", json.dumps(index, indent=1) + "\n")
