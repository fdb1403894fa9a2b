"""Reading bodies: the format is detected from the bytes, and errors contain no paths."""

import dataclasses
import gzip
import re

import numpy as np
import pytest

from condseg_jax.plan import Plan
from condseg_jax.serve import payload
from condseg_jax.serve.payload import read_body
from condseg_jax.serve.request import HttpError
from support.service import AFFINE
from support.service import bad_bodies
from support.service import LIMITS
from support.service import nifti
from support.service import series
from support.service import voxels
from support.service import zipped

PLAN = Plan("ct", (2.0, 1.0, 1.0), (4, 8, 8))
BAD = {name: body for name, body in bad_bodies().items()
       if name not in ("empty", "too many bytes")}  # these fail during the upload


def read(folder, content, wanted="", plan=PLAN, limits=LIMITS):
  (folder / "body").write_bytes(content)
  return read_body(folder, wanted, plan, limits)[0]


@pytest.mark.parametrize("content", [nifti(), gzip.compress(nifti()), series()],
                         ids=["nii", "nii.gz", "zip"])
def test_every_format_gives_the_same_volume(tmp_path, content):
  volume = read(tmp_path, content)
  np.testing.assert_array_equal(volume.array, voxels())
  np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("name", BAD)
def test_errors_are_in_terms_of_the_request(tmp_path, name):
  content, status = BAD[name]
  with pytest.raises(HttpError) as caught:
    read(tmp_path, content)
  error = caught.value
  assert error.status == status
  text = " ".join(error.to_json().values())
  assert str(tmp_path) not in text and "member_" not in text and "--" not in text
  assert error.reason and error.cure
  assert not re.search(r"(^|\s)/\w+", text.replace("'/etc/cron.d/a'", "")), text


def test_a_zip_archive_without_dicom(tmp_path):
  with pytest.raises(HttpError, match="is a zip archive without DICOM images"):
    read(tmp_path, zipped([("a.txt", "hello")]))


def test_slices_are_named_as_the_sender_named_them(tmp_path):
  with pytest.raises(HttpError, match="'study/slice_001.dcm'"):
    read(tmp_path, series(tags={2: {"0020|0032": "9\\9\\9"}}))


def test_one_of_several_series(tmp_path):
  both = {}
  for number in (1, 2):
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / "body").write_bytes(series(voxels(number), uid=f"1.2.{number}"))
    read_body(folder, "", PLAN, LIMITS)
    both |= {f"{number}/{p.name}": p.read_bytes() for p in (folder / "series").iterdir()}
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
  with pytest.raises(HttpError, match="contains 2 series.*`series`.*1.2.1"):
    read(tmp_path / "a", zipped(both.items()))
  volume = read(tmp_path / "b", zipped(both.items()), "1.2.2")
  np.testing.assert_array_equal(volume.array, voxels(2))


# Bytes per voxel of the file: its own, and 13 for the image, label map, best probability and sums
# at the network's spacing, with slabs of a fifth of the volume; or for resampling one in eight
# voxels, 4 for all and 2 x 2 for half of them.
@pytest.mark.parametrize("dtype, spacing, needed", [
    (np.int16, (2.0, 1.0, 1.0), 2 + 13 + 8 / 5), (np.float64, (2.0, 1.0, 1.0), 8 + 13 + 8 / 5),
    (np.int16, (4.0, 2.0, 2.0), 2 + 4 + 4)])
def test_memory_is_bounded_before_voxels_are_unpacked(tmp_path, monkeypatch, dtype, spacing,
                                                      needed):
  array = np.zeros((40, 30, 20), dtype)
  content, plan = gzip.compress(nifti(array)), Plan("mr", spacing, (4, 8, 8))
  enough = dataclasses.replace(LIMITS, memory=int(1.01 * needed * array.size))
  assert read(tmp_path, content, plan=plan, limits=enough).array.shape == array.shape
  monkeypatch.setattr(payload.files, "read_volume", None)
  too_little = dataclasses.replace(LIMITS, memory=int(0.99 * needed * array.size))
  with pytest.raises(HttpError, match=r"GB of memory \(40 x 30 x 20 voxels, ") as caught:
    read(tmp_path, content, plan=plan, limits=too_little)
  assert caught.value.status == 413


def test_the_spacing_of_the_network_counts(tmp_path):
  """720 voxels of 2 mm³; at a tenth of a millimetre they would be 1.44 million."""
  with pytest.raises(HttpError, match="at the network's spacing") as caught:
    read(tmp_path, nifti(), plan=Plan("ct", (0.1, 0.1, 0.1), (4, 8, 8)))
  assert caught.value.status == 413
