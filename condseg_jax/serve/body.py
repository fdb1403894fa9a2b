"""A body on the disk to a volume: what it is follows from its first bytes, never from a name."""

import math
from pathlib import Path

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom
from condseg_jax.formats import files
from condseg_jax.formats.resample import resampled_geometry
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import Volume
from condseg_jax.plan import Plan
from condseg_jax.serve import archive
from condseg_jax.serve.limits import Limits
from condseg_jax.serve.order import BODY
from condseg_jax.serve.refusal import Refusal
from condseg_jax.serve.refusal import refused

MAX_VOXEL_BYTES = 8


def read_body(folder: Path, series: str, plan: Plan, limits: Limits) -> tuple[Volume, str]:
  """Reads the volume of a request.

  Args:
    folder: of the request; holds the file `BODY`, and afterwards what it was unpacked to.
    series: SeriesInstanceUID, where a zip holds several.
    plan: of the network, at whose spacing the volume must be of a bearable size, too.
    limits: of size.

  Returns:
    The volume, and what made it as DICOM calls it ("" where the body does not say).

  Raises:
    Refusal: whatever is wrong with it.
  """
  names: list[str] = []
  try:
    path = _named(folder)
    if path.name == BODY:
      path = folder / "series"
      names = archive.unpack(folder / BODY, path, limits)
    _check_size(files.read_header(path, series), plan, limits)
    return files.read_volume(path, series), files.modality(path, series)
  except InputError as error:
    if error.reason == "holds no DICOM image":
      raise Refusal(422, "body", "is a zip without a DICOM image", "send the folder of a DICOM "
                    "series as a zip, and NIfTI as it is") from error
    raise refused(error, 422, folder, names) from error
  finally:
    dicom.forget()


def _named(folder: Path) -> Path:
  """Gives the body the name that the readers know its format by; a zip keeps `BODY`."""
  path = folder / BODY
  with path.open("rb") as stream:
    head = stream.read(348)
  if head.startswith((archive.SIGNATURE, b"PK\x05\x06")):
    return path
  if head.startswith(b"\x1f\x8b"):
    return path.rename(folder / "image.nii.gz")
  if head[344:346] in (b"n+", b"ni") or head[4:6] == b"n+":
    return path.rename(folder / "image.nii")
  raise Refusal(415, "body", "is neither NIfTI (.nii, .nii.gz) nor a zip",
                "send a NIfTI file, or the folder of a DICOM series as a zip")


def _check_size(header, plan: Plan, limits: Limits) -> None:
  grid = resampled_geometry(canonical_geometry(header.geometry), plan.spacing)
  for shape, where in ((header.geometry.shape, ""), (grid.shape, " at the network's spacing")):
    if math.prod(shape) > limits.voxels:
      told = " x ".join(map(str, shape))
      raise Refusal(413, "body", f"has {told} voxels{where}, more than {limits.voxels}",
                    "cut or resample the volume, and check the spacing in its header")
  if header.peak_bytes > 2 * MAX_VOXEL_BYTES * limits.voxels:
    raise Refusal(413, "body", "takes too much memory to read", "store it with 2 bytes a voxel")
