"""DICOM: slices in the order of their places, and no volume from what is no regular stack."""

import os
import struct

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.encaps import generate_frames
import pytest
from scipy.spatial.transform import Rotation
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats import dicom_slices
from condseg_jax.formats import files
from condseg_jax.formats.dicom import list_series
from condseg_jax.formats.dicom import read_series
from condseg_jax.formats.dicom import read_series_header
from condseg_jax.geometry import match_grid
from support.dicom_files import write_series

VOXELS = np.random.default_rng(0).integers(-1000, 1500, (6, 5, 4))
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.diag([-0.8, -0.7, 2.5])
AFFINE[:3, 3] = (20, 30, -100)


def oblique():
  affine = AFFINE.copy()
  affine[:3, :3] = Rotation.from_euler("xyz", [20, -30, 10], degrees=True).as_matrix() @ affine[:3,
                                                                                              :3]
  return affine


def test_every_slice_has_a_slope_of_its_own(tmp_path):
  """As PET and MR have them: values are no whole numbers."""
  expected = np.empty(VOXELS.shape)
  for k, path in enumerate(write_series(tmp_path, VOXELS, AFFINE)):
    one = pydicom.dcmread(path)
    one.RescaleSlope = 0.25 * (k + 1)
    expected[..., k] = one.pixel_array.T * 0.25 * (k + 1) + float(one.RescaleIntercept)
    one.save_as(path)
  assert (expected % 1).any()
  np.testing.assert_allclose(read_series(tmp_path).array, expected)


def test_names_that_are_not_utf_8(tmp_path):
  folder = tmp_path / os.fsdecode(b"caf\xe9")
  write_series(tmp_path / "plain", VOXELS, AFFINE)
  (tmp_path / "plain").rename(folder)
  for path in sorted(folder.iterdir())[::2]:
    path.rename(folder / os.fsdecode(b"\xff" + os.fsencode(path.name)))
  np.testing.assert_array_equal(read_series(folder).array, VOXELS)


@pytest.mark.parametrize("affine", [AFFINE, oblique()], ids=["axial", "oblique"])
def test_slices_are_ordered_by_position(affine, tmp_path):
  write_series(tmp_path, VOXELS, affine, order=[2, 0, 3, 1])
  volume = read_series(tmp_path)
  np.testing.assert_array_equal(volume.array, VOXELS)
  np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
  header = read_series_header(tmp_path)
  assert header.geometry.shape == VOXELS.shape
  np.testing.assert_array_equal(header.geometry.affine, volume.affine)
  assert files.read_volume(tmp_path).array.shape == VOXELS.shape


def test_the_series_reader_of_simpleitk_agrees(tmp_path):
  paths = write_series(tmp_path, VOXELS, AFFINE, order=[3, 2, 1, 0])
  reader = sitk.ImageSeriesReader()
  reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
  image = reader.Execute()
  volume = read_series(tmp_path)
  np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
  np.testing.assert_allclose(volume.affine[:3, 3] * (-1, -1, 1), image.GetOrigin(), atol=1e-4)
  assert set(files.members(tmp_path)) == set(paths)


def test_one_of_several_series_is_chosen_by_its_id(tmp_path):
  write_series(tmp_path / "a", VOXELS, AFFINE, uid="1.2.1")
  write_series(tmp_path / "b", VOXELS[:, :, :2] + 1, AFFINE, uid="1.2.2")
  (tmp_path / "a" / "notes.txt").write_text("not DICOM")
  with pytest.raises(InputError, match=r"2 series.*1\.2\.1 \(a series, 4 slices\); 1\.2\.2"):
    read_series(tmp_path)
  np.testing.assert_array_equal(read_series(tmp_path, "1.2.2").array, VOXELS[:, :, :2] + 1)
  with pytest.raises(InputError, match="no series 9"):
    read_series(tmp_path, "9")


def test_one_slice_has_its_own_thickness(tmp_path):
  write_series(tmp_path, VOXELS[:, :, :1], AFFINE)
  assert read_series(tmp_path).spacing == pytest.approx((0.8, 0.7, 2.5))


def shifted(k, mm, across=0.0):
  return {k: {"0020|0032": f"-20\\{-30 + across:g}\\{-100 + 2.5 * k + mm:g}"}}


def tilted():
  tags = {}
  for k in range(4):
    tags |= shifted(k, 0.0, across=0.5 * k)
  return tags


REFUSED = {
    "varying distance": (shifted(3, 0.6), "3.1 mm after"),
    "same position": (shifted(2, -2.5), "the same position"),
    "tilt": (tilted(), "gantry tilt of 11.3 degrees"),
    "orientation": ({1: {"0020|0037": "0\\1\\0\\1\\0\\0"}}, "another orientation"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_regular_stack_is_refused(kind, tmp_path):
  tags, reason = REFUSED[kind]
  write_series(tmp_path, VOXELS, AFFINE, tags=tags)
  for read in (read_series, read_series_header):
    with pytest.raises(InputError, match=reason):
      read(tmp_path)


def test_a_slice_that_does_not_say_where_it_lies(tmp_path):
  path = write_series(tmp_path, VOXELS, AFFINE)[1]
  data = path.read_bytes()
  assert data.count(b"\x20\x00\x32\x00") == 1
  path.write_bytes(data.replace(b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"))
  with pytest.raises(InputError, match="ImagePositionPatient") as caught:
    read_series(tmp_path)
  assert caught.value.kind == "affine" and caught.value.subject == str(path)


@pytest.mark.parametrize(("old", "new", "reason", "kind"), [
    (r"1\0\0\0\1\0 ", r".5\0\0\0\1\0", "lengths 0.5 x 1, not 1", "direction"),
    (r"1\0\0\0\1\0", r"1\0\0\1\0\0", "parallel rows and columns", "affine"),
    (r".7\.8", r"-7\.8", "PixelSpacing", "affine"), (r".7\.8", r"0 \.8", "PixelSpacing", "affine"),
    (r"-20\-30", r"inf\-30", "ImagePositionPatient", "affine"),
])
def test_slices_whose_place_makes_no_sense(old, new, reason, kind, tmp_path):
  for path in write_series(tmp_path, VOXELS, AFFINE):
    data = path.read_bytes()
    assert data.count(old.encode()) == 1
    assert len(new) == len(old)
    path.write_bytes(data.replace(old.encode(), new.encode()))
  for read in (read_series, read_series_header):
    with pytest.raises(InputError, match=reason) as caught:
      read(tmp_path)
    assert caught.value.kind == kind


def test_a_missing_slice(tmp_path):
  write_series(tmp_path, np.concatenate([VOXELS] * 2, axis=2), AFFINE)[2].unlink()
  with pytest.raises(InputError, match="a slice is missing"):
    read_series(tmp_path)


def test_a_slice_of_another_size(tmp_path):
  paths = write_series(tmp_path, VOXELS, AFFINE)
  other = write_series(tmp_path / "other", VOXELS[:4], AFFINE)
  other[1].replace(paths[1])
  with pytest.raises(InputError, match=r"\(4, 5\), but other slices have \(6, 5\)"):
    read_series(tmp_path)


@pytest.mark.parametrize("part", [0.3, 0.95])
def test_a_damaged_slice_is_named(part, tmp_path):
  path = write_series(tmp_path, np.tile(VOXELS, (20, 20, 1)), AFFINE)[1]
  path.write_bytes(path.read_bytes()[:int(part * path.stat().st_size)])
  with pytest.raises(InputError) as caught:
    read_series(tmp_path)
  assert caught.value.subject == str(path) and caught.value.kind == "truncated"


@pytest.mark.parametrize(("name", "content", "refused"), [
    ("IM4", b"none", True), ("a.DCM", b"none", True), ("a", b"", True), ("1.2.3", b"x", True),
    ("a", bytes(129) + b"DICM", True), ("notes.txt", b"", False), ("VERSION", b"none", False),
    ("IM4.txt", b"none", False), ("4", b"none", False)])
def test_a_lost_slice_is_not_taken_for_a_note(name, content, refused, tmp_path):
  """The last slice leaves no gap."""
  for k, path in enumerate(write_series(tmp_path, VOXELS, AFFINE)):
    path.rename(tmp_path / f"IM{k}")
  (tmp_path / name).write_bytes(content)
  if not refused:
    np.testing.assert_array_equal(read_series(tmp_path).array, VOXELS)
    return
  for read in (read_series, read_series_header, list_series):
    with pytest.raises(InputError, match="seems to be a slice") as caught:
      read(tmp_path)
    assert caught.value.subject == str(tmp_path / name)


def test_a_series_of_two_patients(tmp_path):
  ids = {k: {"0010|0020": name} for k, name in enumerate(["A", "A", "B"])}  # and one without
  write_series(tmp_path, VOXELS, AFFINE, tags=ids)
  for read in (read_series, read_series_header):
    with pytest.raises(InputError, match="several patients"):
      read(tmp_path)
  write_series(tmp_path, VOXELS, AFFINE, tags={k: {"0010|0020": "A"} for k in range(3)})
  np.testing.assert_array_equal(read_series(tmp_path).array, VOXELS)


# --- pixel data ---------------------------------------------------------------------------------
def changed(path, change, syntax=pydicom.uid.ExplicitVRLittleEndian):
  """Lets `change` alter a slice, and stores it as `syntax` says."""
  one = pydicom.dcmread(path)
  icon = pydicom.Dataset()
  icon.PixelData, icon.Rows, icon.BitsAllocated = b"1234", 2, 8
  icon["PixelData"].VR = "OB"
  one.IconImageSequence = pydicom.Sequence([icon])
  one["IconImageSequence"].is_undefined_length = True
  icon.is_undefined_length_sequence_item = True
  change(one)
  if not syntax.is_little_endian:
    one.PixelData = np.frombuffer(one.PixelData, "<i2").astype(">i2").tobytes()
  one.file_meta.TransferSyntaxUID = syntax
  pydicom.dcmwrite(path, one, implicit_vr=syntax.is_implicit_VR,
                   little_endian=syntax.is_little_endian, enforce_file_format=True)


@pytest.mark.parametrize("syntax", [
    pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian])
@pytest.mark.parametrize(("cut", "added", "kind"), [
    (60, b"", ""), (60, bytes(10), ""), (58, b"", "truncated"), (48, b"", "truncated"),
    (60, b"\0\1", "size"), (60, bytes(12), "size"), (60, 60 * b"x", "size")])
def test_native_pixels_of_another_size_than_declared(syntax, cut, added, kind, tmp_path):
  """A slice has 5 rows of 12 bytes."""
  paths = write_series(tmp_path, VOXELS, AFFINE)

  def change(one):
    one.PixelData = one.PixelData[:cut] + added
  for path in paths:
    changed(path, change if path == paths[1] else lambda one: None, syntax)
  if not kind:
    np.testing.assert_array_equal(read_series(tmp_path).array, VOXELS)
    return
  with pytest.raises(InputError, match="bytes of pixel data") as caught:
    read_series(tmp_path)
  assert caught.value.kind == kind and caught.value.subject == str(paths[1])


@pytest.mark.parametrize(("field", "value"), [
    ("Rows", 4), ("Rows", 6), ("Columns", 5), ("Columns", 7), ("BitsAllocated", 8)])
def test_a_series_of_another_size_than_declared(field, value, tmp_path):
  for path in write_series(tmp_path, VOXELS, AFFINE):
    changed(path, lambda one: setattr(one, field, value))
  with pytest.raises(InputError):
    read_series(tmp_path)


@pytest.mark.parametrize("syntax", [
    pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian])
@pytest.mark.parametrize(("signed", "above", "valid"), [
    (0, 0, True), (1, 0, True), (1, 0xF000, True), (0, 0xF000, False), (1, 0x1000, False)])
def test_the_bits_above_those_stored(syntax, signed, above, valid, tmp_path):
  """12 bits of 16: above them are zeros, copies of the sign, or formerly an overlay."""
  def change(one):
    one.BitsStored, one.HighBit, one.PixelRepresentation = 12, 11, signed
    pixels = np.frombuffer(one.PixelData, "<u2") & 0xFFF | 0x800
    one.PixelData = (pixels | above).astype("<u2").tobytes()
  paths = write_series(tmp_path, VOXELS, AFFINE)
  for path in paths:
    changed(path, change, syntax)
  if valid:
    read_series(tmp_path)
    return
  with pytest.raises(InputError, match="more bits than BitsStored, 12"):
    read_series(tmp_path)
  for path in paths:
    changed(path, lambda one: one.add_new(0x60000010, "US", 5), syntax)
  read_series(tmp_path)


@pytest.mark.parametrize(("field", "value", "reason"), [
    ("RescaleSlope", 0, "RescaleSlope '0.0'"), ("RescaleIntercept", "", "RescaleIntercept ''"),
    ("PixelRepresentation", 2, "PixelRepresentation"),
    ("PhotometricInterpretation", "MONOCHROME1", "'MONOCHROME1'"),
    ("BitsStored", 12, "16 12 15"), ("HighBit", 11, "16 16 11"), ("BitsStored", 17, "16 17 15")])
def test_a_slice_whose_values_make_no_sense(field, value, reason, tmp_path):
  """GDCM takes a slope of 0 for 1, and inverts MONOCHROME1."""
  path = write_series(tmp_path, VOXELS, AFFINE)[2]
  changed(path, lambda one: setattr(one, field, value))
  for read in (read_series, read_series_header):
    with pytest.raises(InputError, match=reason) as caught:
      read(tmp_path)
    assert caught.value.subject == str(path)


def compressed(folder, change=lambda one: None, frames=lambda frame: [frame], table=True):
  """A series as RLE. GDCM cannot read it from slices as small as the others here."""
  voxels = np.random.default_rng(0).integers(-1000, 1500, (16, 20, 2))
  for path in write_series(folder, voxels, AFFINE):
    one = pydicom.dcmread(path)
    one.compress(pydicom.uid.RLELossless)
    frame, = generate_frames(one.PixelData, number_of_frames=1)
    one.PixelData = encapsulate(frames(frame), has_bot=table)
    change(one)
    one.save_as(path)
  return voxels


def test_compressed_slices(tmp_path):
  np.testing.assert_array_equal(compressed(tmp_path), read_series(tmp_path).array)


@pytest.mark.parametrize("table", [True, False])
def test_compressed_frames_beyond_the_first(table, tmp_path):
  compressed(tmp_path, frames=lambda frame: [frame, frame], table=table)
  with pytest.raises(InputError, match="contains 2 compressed frames") as caught:
    read_series(tmp_path)
  assert caught.value.subject == str(tmp_path / "slice_000.dcm")


@pytest.mark.parametrize(("frames", "fields", "kind"), [
    (lambda frame: [frame[:-8]], {}, "truncated"), (lambda frame: [frame[:60]], {}, "truncated"),
    (lambda frame: [frame[:len(frame) // 2]], {}, "truncated"),
    (lambda frame: [frame], {"Rows": 19}, "size"),
    (lambda frame: [frame], {"Rows": 21}, "truncated"),
    (lambda frame: [frame], {"Columns": 15}, "size"),
    (lambda frame: [frame], {"BitsAllocated": 8}, "unreadable")])
def test_compressed_slices_of_another_size_than_declared(frames, fields, kind, tmp_path):
  """GDCM gives pixels in wrong places, or those of another image."""
  def change(one):
    for field, value in fields.items():
      setattr(one, field, value)
  compressed(tmp_path, change, frames)
  with pytest.raises(InputError) as caught:
    read_series(tmp_path)
  assert caught.value.kind == kind and caught.value.subject == str(tmp_path / "slice_000.dcm")


def test_nothing_there(tmp_path):
  for path in (tmp_path, tmp_path / "missing"):
    with pytest.raises(InputError):
      read_series(path)
  (tmp_path / "a.txt").write_text("text")
  with pytest.raises(InputError, match="contains no DICOM image"):
    read_series(tmp_path)
  with pytest.raises(InputError, match="not a folder"):
    read_series(tmp_path / "a.txt")


def test_the_directory_of_a_disc_is_no_image(tmp_path):
  """DICOMDIR lies beside the slices on every disc: File-set Standard, PS3.3 F, no pixels."""
  def element(tag, representation, value):
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", 2, tag, representation, len(value)) + value

  meta = (element(2, b"UI", b"1.2.840.10008.1.3.10") + element(3, b"UI", b"1.2.3")
          + element(0x10, b"UI", b"1.2.840.10008.1.2.1"))
  records = struct.pack("<HH2sHI", 4, 0x1220, b"SQ", 0, 0)
  write_series(tmp_path, VOXELS, AFFINE)
  (tmp_path / "DICOMDIR").write_bytes(
      bytes(128) + b"DICM" + element(0, b"UL", struct.pack("<I", len(meta))) + meta + records)
  np.testing.assert_array_equal(read_series(tmp_path).array, VOXELS)


def test_what_is_remembered_can_be_dropped(tmp_path):
  write_series(tmp_path, VOXELS, AFFINE)
  read_series_header(tmp_path)
  assert dicom_slices._headers.cache_info().currsize > 0
  dicom_slices.clear_header_cache()
  assert dicom_slices._headers.cache_info().currsize == 0


def test_what_is_read_again_is_what_is_there_now(tmp_path):
  """The headers of a folder are remembered only while its files stay."""
  write_series(tmp_path, VOXELS, AFFINE)
  read_series_header(tmp_path)
  write_series(tmp_path, np.concatenate([VOXELS] * 2, axis=2), AFFINE)
  assert read_series_header(tmp_path).geometry.shape == (6, 5, 8)


# --- the real series ----------------------------------------------------------------------------
def test_a_real_series_and_its_label_agree_by_geometry(real_data):
  """Compressed as JPEG 2000; the label's y axis runs the other way."""
  root = real_data / "ct_sample"
  image = files.read_volume(root / "ct_dicom")
  assert image.array.shape == (512, 512, 20) and image.array.dtype.kind in "if"
  assert image.spacing == pytest.approx((0.9765625, 0.9765625, 2.0))
  stored = files.read_label(root / "ct_dicom_labels.nii.gz")
  label = match_grid("image", image.geometry, "label", stored)
  assert (label.array != stored.array).any()

  liver = image.array[label.array == 5]
  assert 20 < liver.mean() < 250 and (liver < -200).mean() < 0.01
  by_index = image.array[stored.array == 5]
  assert by_index.std() > 2 * liver.std()

  # SimpleITK puts the label onto the image by geometry, too.
  reader = sitk.ImageSeriesReader()
  reader.SetFileNames([str(p) for p in files.members(root / "ct_dicom")])
  reference = sitk.Resample(sitk.ReadImage(str(root / "ct_dicom_labels.nii.gz")), reader.Execute(),
                            sitk.Transform(), sitk.sitkNearestNeighbor)
  np.testing.assert_array_equal(sitk.GetArrayFromImage(reference).transpose(2, 1, 0), label.array)
