"""Writes the uncertainty of an image beside its mask."""

from pathlib import Path

import numpy as np

from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume

GREY_PER_BIT = 100


def write_uncertainty(folder: Path, stem: str, bits: Volume) -> Path:
  """Writes STEM_uncertainty.nii.gz, float32 in bits; of a picture .png, `GREY_PER_BIT`, up to 255.

  Args:
    folder: output folder.
    stem: of the file name.
    bits: entropy of every voxel.

  Raises:
    InputError: the file cannot be written.
  """
  if bits.ndim == 2:
    path = folder / f"{stem}_uncertainty.png"
    grey = np.rint(GREY_PER_BIT * bits.array.astype(np.float32))
    write_png(path, np.minimum(grey, 255).astype(np.uint8))
  else:
    path = folder / f"{stem}_uncertainty.nii.gz"
    write_nifti(path, bits)
  return path
