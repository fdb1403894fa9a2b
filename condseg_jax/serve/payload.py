"""Reads a request body as a volume, in the worker.

Its format is detected from its first bytes, never from a name.
"""

from collections.abc import Sequence
import math
from pathlib import Path

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.voxels import Header
from condseg_jax.geometry import canonical_geometry
from condseg_jax.geometry import Volume
from condseg_jax.plan import Plan
from condseg_jax.resample import resampled_geometry
from condseg_jax.serve import archive
from condseg_jax.serve import signature
from condseg_jax.serve.request import BODY
from condseg_jax.serve.request import HttpError
from condseg_jax.serve.request import Limits
from condseg_jax.serve.request import SERIES
from condseg_jax.serve.request import to_http_error

# Per voxel at the network's spacing: three copies of the image; and the image, best probability and
# sums as float32 and the label map.
NORMALISATION_BYTES, PREDICTION_BYTES = 12, 13
PICTURES = tuple(signature.PICTURES.values())
_OTHER_AXES = {  # of the network → what is wrong with a body that has not as many
    2: ("is neither PNG, JPEG nor TIFF", "send a picture: the network of this service is 2-D"),
    3: ("is a picture", "send a NIfTI file, or a DICOM series as a zip archive: the network of "
        "this service is 3-D")}


def read_body(folder: Path, series: str, plan: Plan, limits: Limits) -> tuple[Volume, str]:
  """Reads the volume, or for a 2-D network the picture, of a request.

  Args:
    folder: folder of the request with the file `BODY`, of which a zip archive is unpacked into
      the folder `SERIES`; or with that folder instead.
    series: SeriesInstanceUID to select from a zip archive with several series, or "".
    plan: of the network; its spacing determines the memory of a prediction.
    limits: of size.

  Returns:
    The volume, and its DICOM modality ("" if unknown).

  Raises:
    HttpError: the body is not a valid volume, or would take too much memory; the latter is known
      from its header, before voxels are unpacked.
  """
  names: list[str] = []
  try:
    path = folder / SERIES
    if not path.is_dir():
      path = _rename_by_format(folder, len(plan.spacing))
    if path.name == BODY:
      path = folder / SERIES
      names = archive.unpack(folder / BODY, path, limits)
    _check_size(files.read_header(path, series), plan, limits)
    return files.read_volume(path, series), files.modality(path, series)
  except InputError as error:
    if "no DICOM image" in error.reason:  # its cure names a folder, but the sender sent a zip
      raise HttpError(422, "body", "is a zip archive without DICOM images", "zip the folder of a "
                      "DICOM series; send NIfTI as it is") from error
    raise to_http_error(error, 422, folder, names) from error


def _rename_by_format(folder: Path, axes: int) -> Path:
  """Renames a file so that the readers recognise it; a zip archive keeps the name `BODY`."""
  path = folder / BODY
  with path.open("rb") as stream:
    head = stream.read(signature.HEAD_BYTES)
  suffix = signature.suffix(head)
  if (suffix in PICTURES) != (axes == 2):
    reason, cure = _OTHER_AXES[axes]
    raise HttpError(415, "body", reason, cure)
  if suffix == ".zip" or head.startswith(signature.EMPTY_ZIP):
    return path
  if suffix:
    return path.rename(folder / f"image{suffix}")
  raise HttpError(415, "body", "is neither NIfTI (.nii, .nii.gz) nor a zip archive",
                  "send a NIfTI file, or the folder of a DICOM series as a zip archive")


def _check_size(header: Header, plan: Plan, limits: Limits) -> None:
  """Raises HttpError if reading and predicting a volume would take too much memory."""
  native = canonical_geometry(header.geometry)
  shape = resampled_geometry(native, plan.spacing).shape
  needed = plan.channels * header.peak_bytes + max(
      plan.channels * _resampling_bytes(native.shape, shape),
      plan.channels * NORMALISATION_BYTES * math.prod(shape),
      _prediction_bytes(shape, plan.subvolume))
  if needed > limits.memory:
    size, resampled = (" x ".join(map(str, s)) for s in (header.geometry.shape, shape))
    raise HttpError(413, "body", f"needs about {needed / 1e9:.3g} GB of memory ({size} voxels, "
                    f"{resampled} at the network's spacing); the limit is "
                    f"{limits.memory / 1e9:g} GB", "crop or resample the volume, store it with 2 "
                    "bytes per voxel, and check the spacing in its header")


def _prediction_bytes(shape: Sequence[int], window: Sequence[int]) -> int:
  """Returns the memory of predicting one class, without that of the network."""
  padded = [max(size, width) for size, width in zip(shape, window, strict=True)]
  voxels = math.prod(padded)
  slab = min(voxels // size * width for size, width in zip(padded, window, strict=True))
  return PREDICTION_BYTES * voxels + 2 * 4 * slab  # sums of probabilities and of weights


def _resampling_bytes(old: Sequence[int], new: Sequence[int]) -> int:
  """Returns the memory of `resample.resample_image`, its result included."""
  shape = list(old)
  peak = size = math.prod(shape)
  for axis in sorted(range(len(shape)), key=lambda axis: new[axis] / old[axis]):
    if new[axis] != old[axis]:
      shape[axis] = new[axis]
      # The input of the pass, the result, and the difference of neighbours.
      peak, size = max(peak, size + 2 * math.prod(shape)), math.prod(shape)
  return 4 * peak
