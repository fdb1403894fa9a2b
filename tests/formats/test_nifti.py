"""NIfTI files: what is written comes back, and what cannot be trusted is refused by name."""

import gzip
import logging
import os
from pathlib import Path
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from condseg_jax.errors import InputError
from condseg_jax.formats.files import read_label
from condseg_jax.formats.nifti import read_names
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.formats.nifti import read_nifti_header
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.geometry import corner_distance
from condseg_jax.geometry import Volume

DATA = os.environ.get("CONDSEG_TEST_DATA")
AFFINE = np.array([[-0.75, 0, 0, 90.5], [0, -0.75, 0, 80.25], [0, 0, 2.5, -700], [0, 0, 0, 1.0]])
SHAPE = (3, 4, 5)


def ramp(dtype=np.int16, shape=SHAPE):
  return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def saved(path, array, affine=AFFINE, **header):
  """A file written by nibabel alone, with header fields set as given."""
  image = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
  for field, value in header.items():
    image.header[field] = value
  nibabel.save(image, path)
  return path


def patched(path, **fields):
  """Sets header fields of an uncompressed little-endian file, past nibabel's checks."""
  offsets = {"qform_code": ("<h", 252), "sform_code": ("<h", 254), "scl_slope": ("<f", 112),
             "scl_inter": ("<f", 116), "datatype": ("<h", 70), "dim3": ("<h", 46),
             "pixdim3": ("<f", 88), "vox_offset": ("<f", 108),
             "srow_x0": ("<f", 280), "xyzt_units": ("<b", 123),
             "quatern_b": ("<f", 256), "magic": ("4s", 344)}
  data = bytearray(path.read_bytes())
  for field, value in fields.items():
    code, offset = offsets[field]
    struct.pack_into(code, data, offset, value)
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII", "b.NII.GZ"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_round_trip_keeps_values_dtype_and_affine(tmp_path, name, dtype):
  volume = Volume(ramp(dtype), AFFINE)
  write_nifti(tmp_path / name, volume)
  again = read_nifti(tmp_path / name)
  assert again.array.dtype == np.dtype(dtype)
  np.testing.assert_array_equal(again.array, volume.array)
  np.testing.assert_array_equal(again.affine, AFFINE)
  geometry = read_nifti_header(tmp_path / name).geometry
  assert geometry.shape == SHAPE
  np.testing.assert_array_equal(geometry.affine, AFFINE)
  compressed = (tmp_path / name).read_bytes()[:2] == b"\x1f\x8b"
  assert compressed == name.lower().endswith(".gz")


@pytest.mark.parametrize(("dtype", "stored"), [
  ("?", "u1"), ("i8", "i4"), ("u8", "i4"), ("f2", "f4"), (">i2", "i2"), (np.longdouble, "f4")])
def test_types_that_readers_lack_are_widened_or_narrowed(tmp_path, dtype, stored):
  array = ramp(dtype)
  write_nifti(tmp_path / "a.nii", Volume(array, AFFINE))
  again = read_nifti(tmp_path / "a.nii")
  assert again.array.dtype == np.dtype(stored)
  np.testing.assert_array_equal(again.array, array.astype(stored))


def test_what_nifti_cannot_hold_is_refused(tmp_path):
  for array in (ramp("c8"), np.full(SHAPE, 2**40), np.full(SHAPE, "x")):
    with pytest.raises(InputError):
      write_nifti(tmp_path / "a.nii", Volume(array, AFFINE))
  with pytest.raises(InputError, match="one value per voxel"):
    write_nifti(tmp_path / "a.nii", Volume(np.zeros((*SHAPE, 2)), AFFINE))
  with pytest.raises(InputError, match="PNG"):
    write_nifti(tmp_path / "a.nii", Volume(np.zeros((3, 4)), np.eye(3)))
  with pytest.raises(InputError, match="not named"):
    write_nifti(tmp_path / "a.mha", Volume(ramp(), AFFINE))
  assert list(tmp_path.iterdir()) == []


def test_header_says_scanner_space_millimetres_and_no_scaling(tmp_path):
  write_nifti(tmp_path / "a.nii", Volume(ramp(), AFFINE))
  raw = (tmp_path / "a.nii").read_bytes()
  assert struct.unpack_from("<2h", raw, 252) == (1, 1)
  assert struct.unpack_from("<2f", raw, 112) == (1.0, 0.0)
  header = nibabel.load(tmp_path / "a.nii").header
  assert header.get_xyzt_units()[0] == "mm"
  np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)
  np.testing.assert_array_equal(header.get_sform(), AFFINE)
  assert int(header["intent_code"]) == 0
  write_nifti(tmp_path / "b.nii", Volume(ramp(), AFFINE), code=4)
  assert struct.unpack_from("<2h", (tmp_path / "b.nii").read_bytes(), 252) == (4, 4)


def test_a_rotation_fits_the_qform_and_a_shear_only_the_sform(tmp_path):
  oblique = AFFINE.copy()
  rotation = Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()
  oblique[:3, :3] = rotation @ AFFINE[:3, :3]
  write_nifti(tmp_path / "o.nii", Volume(ramp(), oblique))
  header = nibabel.load(tmp_path / "o.nii").header
  assert int(header["qform_code"]) == 1
  np.testing.assert_allclose(header.get_qform(), oblique, atol=1e-4)
  sheared = AFFINE.copy()
  sheared[1, 2] = 0.625
  write_nifti(tmp_path / "s.nii", Volume(ramp(), sheared))
  header = nibabel.load(tmp_path / "s.nii").header
  assert int(header["qform_code"]) == 0 and int(header["sform_code"]) == 1
  np.testing.assert_array_equal(read_nifti(tmp_path / "s.nii").affine, sheared)


@pytest.mark.parametrize(("top", "stored"), [(1, "u1"), (255, "u1"), (256, "u2"), (65535, "u2")])
@pytest.mark.parametrize("dtype", ["i8", "i4", "u4"])
def test_label_maps_carry_the_intent_code_and_the_smallest_type(tmp_path, top, stored, dtype):
  array = np.zeros(SHAPE, dtype)
  array[1, 2, 3] = top
  write_nifti(tmp_path / "l.nii.gz", Volume(array, AFFINE), label=True)
  header = nibabel.load(tmp_path / "l.nii.gz").header
  assert int(header["intent_code"]) == 1002
  assert header.get_data_dtype() == np.dtype(stored)
  again = read_label(tmp_path / "l.nii.gz")
  assert again.array.dtype == np.dtype(stored)
  np.testing.assert_array_equal(again.array, array)


@pytest.mark.parametrize("array", [ramp("f4"), ramp("i2") - 1, np.full(SHAPE, 65536)])
def test_label_maps_hold_small_non_negative_integers(tmp_path, array):
  with pytest.raises(InputError):
    write_nifti(tmp_path / "l.nii", Volume(array, AFFINE), label=True)


def test_bool_masks_are_labels(tmp_path):
  write_nifti(tmp_path / "l.nii", Volume(ramp() > 7, AFFINE), label=True)
  np.testing.assert_array_equal(read_label(tmp_path / "l.nii").array, ramp() > 7)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_class_names_travel_in_the_header(tmp_path, ending):
  plain, named, listed = (tmp_path / (n + ending) for n in "pnl")
  volume = Volume(ramp("u1"), AFFINE)
  write_nifti(plain, volume, label=True)
  write_nifti(named, volume, label=True, names={"left kidney": 3, "Längsmuskel": 12})
  write_nifti(listed, volume, label=True, names=("liver", "spleen"))
  assert read_names(plain) == {}
  assert read_names(named) == {"left kidney": 3, "Längsmuskel": 12}
  assert read_names(listed) == {"liver": 1, "spleen": 2}
  np.testing.assert_array_equal(read_label(named).array, volume.array)


def test_names_ignores_comments_of_other_programs(tmp_path):
  image = nibabel.Nifti1Image(ramp(), AFFINE)
  for text in (b"made by hand", b"[1, 2]", b'{"labels": 3}'):
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text))
  nibabel.save(image, tmp_path / "a.nii")
  assert read_names(tmp_path / "a.nii") == {}


def test_writing_is_reproducible_and_replaces(tmp_path):
  path = tmp_path / "a.nii.gz"
  write_nifti(path, Volume(ramp("u1"), AFFINE))
  first = path.read_bytes()
  write_nifti(path, Volume(ramp("f4"), AFFINE))
  write_nifti(path, Volume(ramp("u1"), AFFINE))
  assert path.read_bytes() == first
  assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
  path = tmp_path / "a.nii.gz"
  write_nifti(path, Volume(ramp("u1"), AFFINE))
  before = path.read_bytes()

  def half(image, name):
    assert Path(name).parent == tmp_path and str(name).endswith(".nii.gz")
    Path(name).write_bytes(b"half")
    raise failure

  monkeypatch.setattr(nibabel, "save", half)
  expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
  with pytest.raises(expected):
    write_nifti(path, Volume(ramp("f4"), AFFINE))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_an_unusable_target_is_an_input_error(tmp_path):
  (tmp_path / "file").write_bytes(b"")
  (tmp_path / "folder.nii").mkdir()
  for path in (tmp_path / "no/a.nii", tmp_path / "file/a.nii", tmp_path / "folder.nii"):
    with pytest.raises(InputError, match="cannot be written"):
      write_nifti(path, Volume(ramp(), AFFINE))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.nii"]


def test_scaled_voxels_become_float32(tmp_path):
  path = patched(saved(tmp_path / "a.nii", ramp("i2")), scl_slope=0.5, scl_inter=-3.0)
  volume = read_nifti(path)
  assert volume.array.dtype == np.float32
  np.testing.assert_array_equal(volume.array, ramp("f4") * 0.5 - 3.0)


@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.0, 7.0), (np.nan, 0.0),
                                               (np.nan, np.nan)])
def test_scaling_that_is_unset_or_identity_keeps_the_type(tmp_path, slope, inter):
  path = patched(saved(tmp_path / "a.nii", ramp("i2")), scl_slope=slope, scl_inter=inter)
  volume = read_nifti(path)
  assert volume.array.dtype == np.int16
  np.testing.assert_array_equal(volume.array, ramp("i2"))


@pytest.mark.parametrize(("slope", "inter"), [
    (np.nan, 7.0), (np.inf, 0.0), (-np.inf, np.nan), (2.0, np.nan), (2.0, np.inf)])
def test_scaling_that_is_contradictory(tmp_path, slope, inter):
  path = patched(saved(tmp_path / "a.nii", ramp("i2")), scl_slope=slope, scl_inter=inter)
  for read in (read_nifti, read_nifti_header):
    with pytest.raises(InputError, match="invalid"):
      read(path)


def test_scaling_large_integers_does_not_lose_digits(tmp_path):
  # 2**24 + 1 is no float32: subtracting in float32 would give 0 or 2 instead of 1.
  array = np.full(SHAPE, 2**24 + 1, np.int32)
  path = patched(saved(tmp_path / "a.nii", array), scl_slope=1.0, scl_inter=-float(2**24))
  np.testing.assert_array_equal(read_nifti(path).array, 1.0)


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">u2", ">f8"])
def test_big_endian_files_become_native(tmp_path, dtype):
  header = nibabel.Nifti1Header(endianness=">")
  header.set_data_dtype(dtype)
  nibabel.save(nibabel.Nifti1Image(ramp(dtype), AFFINE, header), tmp_path / "a.nii")
  assert (tmp_path / "a.nii").read_bytes()[:4] == struct.pack(">i", 348)
  volume = read_nifti(tmp_path / "a.nii")
  assert volume.array.dtype.isnative and volume.array.dtype == np.dtype(dtype).newbyteorder("=")
  np.testing.assert_array_equal(volume.array, ramp(dtype))
  np.testing.assert_array_equal(volume.affine, AFFINE)


def test_nifti_2_is_read(tmp_path):
  nibabel.save(nibabel.Nifti2Image(ramp(), AFFINE), tmp_path / "a.nii")
  np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").array, ramp())
  assert read_nifti_header(tmp_path / "a.nii").geometry.shape == SHAPE


def test_a_dimension_past_32767_is_written_as_nifti_2(tmp_path):
  volume = Volume(np.ones((40000, 1, 1), np.uint8), AFFINE)
  write_nifti(tmp_path / "a.nii", volume, label=True)
  assert read_label(tmp_path / "a.nii").array.shape == (40000, 1, 1)


def test_trailing_dimensions_of_one_are_dropped_and_single_slices_kept(tmp_path):
  saved(tmp_path / "a.nii", ramp().reshape(*SHAPE, 1, 1))
  np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii").array, ramp())
  assert read_nifti_header(tmp_path / "a.nii").geometry.shape == SHAPE
  saved(tmp_path / "b.nii", ramp(shape=(3, 4, 1)))
  assert read_nifti(tmp_path / "b.nii").array.shape == (3, 4, 1)


@pytest.mark.parametrize("read", [read_nifti, read_label, read_nifti_header])
@pytest.mark.parametrize(("shape", "reason"), [
  ((3, 4, 5, 2), "4-D: 2 volumes"), ((3, 4, 5, 1, 3), "5-D: 3 volumes"), ((3, 4), "2-D")])
def test_other_dimensions_are_refused(tmp_path, read, shape, reason):
  path = saved(tmp_path / "a.nii", ramp(shape=shape))
  with pytest.raises(InputError, match=reason) as caught:
    read(path)
  assert ("split" if len(shape) > 3 else "(x, y, 1)") in caught.value.cure


def test_complex_and_colour_voxels_are_refused_by_name(tmp_path):
  with pytest.raises(InputError, match="complex64"):
    read_nifti(saved(tmp_path / "c.nii", ramp("c8")))
  rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
  with pytest.raises(InputError, match="RGB"):
    read_nifti(saved(tmp_path / "r.nii", rgb))


def test_nan_and_inf_are_counted(tmp_path):
  array = ramp("f4")
  array[0, 1, :3] = np.nan
  array[1, 0, 4] = -np.inf
  with pytest.raises(InputError, match="4 of 60 voxels are NaN or Inf"):
    read_nifti(saved(tmp_path / "a.nii.gz", array))
  huge = patched(saved(tmp_path / "b.nii", ramp("f4")), scl_slope=3e38)
  with pytest.raises(InputError, match="58 of 60"):  # all but 0 and 1 overflow float32
    read_nifti(huge)


def test_integral_floats_are_labels_and_others_are_not(tmp_path):
  path = saved(tmp_path / "a.nii", (ramp() % 3).astype("f4"))
  label = read_label(path)
  assert label.array.dtype == np.uint8
  np.testing.assert_array_equal(label.array, ramp() % 3)
  array = (ramp() % 3).astype("f8")
  array[2, 1, 0] = 1.25
  with pytest.raises(InputError, match="fractional value 1.25"):
    read_label(saved(tmp_path / "b.nii", array))
  with pytest.raises(InputError, match="value -2"):
    read_label(saved(tmp_path / "c.nii", ramp() - 2))
  with pytest.raises(InputError, match="value 1e"):
    read_label(saved(tmp_path / "d.nii", np.full(SHAPE, 1e30)))


def test_labels_rescaled_by_their_header_are_still_labels(tmp_path):
  path = patched(saved(tmp_path / "a.nii", (ramp() % 2 * 255).astype("u1")), scl_slope=1 / 255)
  np.testing.assert_array_equal(read_label(path).array, ramp() % 2)


@pytest.mark.parametrize("read", [read_nifti, read_nifti_header])
def test_a_file_without_orientation_is_refused(tmp_path, read):
  path = patched(saved(tmp_path / "a.nii", ramp()), qform_code=0, sform_code=0)
  with pytest.raises(InputError, match="no orientation"):
    read(path)


def test_the_qform_serves_when_there_is_no_sform(tmp_path):
  path = saved(tmp_path / "a.nii", ramp())
  image = nibabel.load(path)
  image.set_qform(AFFINE, 1)
  nibabel.save(image, path)
  patched(path, sform_code=0, srow_x0=99.0)
  np.testing.assert_allclose(read_nifti(path).affine, AFFINE, atol=1e-5)
  # nibabel would quietly read a missing voxel size as 1 mm.
  with pytest.raises(InputError, match="spacing"):
    read_nifti(patched(path, pixdim3=0.0))
  with pytest.raises(InputError, match="invalid header"):
    read_nifti(patched(path, pixdim3=2.5, quatern_b=3.0))


@pytest.mark.parametrize(("value", "reason"), [(0.0, "column 0"), (np.nan, "NaN")])
def test_a_degenerate_sform_is_refused(tmp_path, value, reason):
  path = patched(saved(tmp_path / "a.nii", ramp()), srow_x0=value)
  with pytest.raises(InputError, match=reason) as caught:
    read_nifti(path)
  assert caught.value.subject == str(path)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 1e-3)])
def test_world_units_become_millimetres(tmp_path, unit, factor):
  path = patched(saved(tmp_path / "a.nii", ramp()), xyzt_units=unit)
  expected = np.diag([factor, factor, factor, 1.0]) @ AFFINE
  np.testing.assert_allclose(read_nifti(path).affine, expected)
  np.testing.assert_allclose(read_nifti_header(path).geometry.affine, expected)


@pytest.mark.parametrize("read", [read_nifti, read_label, read_nifti_header, read_names])
def test_files_that_are_no_nifti_say_why(tmp_path, read):
  whole = saved(tmp_path / "whole.nii.gz", ramp()).read_bytes()
  cases = {"empty.nii": (b"", "empty"), "empty.nii.gz": (b"", "empty"),
           "text.nii": (b"hello " * 200, "not a NIfTI file"), "short.nii": (b"n+1", "not a NIfTI"),
           "text.nii.gz": (b"hello " * 200, "not gzip-compressed"),
           "zipped.nii": (whole, "is gzip-compressed"),
           "other.nii.gz": (gzip.compress(b"hello " * 200), "not a NIfTI file"),
           "cut.nii.gz": (whole[:40], "truncated"),
           "noise.nii.gz": (whole[:30] + b"\xff" * 30 + whole[60:], "damaged"),
           "scan.mha": (b"ObjectType = Image", "not named .nii|not a MetaImage")}
  for name, (content, reason) in cases.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
      read(tmp_path / name)
    assert caught.value.subject == str(tmp_path / name) and caught.value.cure
  (tmp_path / "folder.nii").mkdir()
  with pytest.raises(InputError, match="folder"):
    read(tmp_path / "folder.nii")
  with pytest.raises(InputError, match="does not exist"):
    read(str(tmp_path / "missing.nii.gz"))


def test_half_of_a_pair_is_named(tmp_path):
  path = patched(saved(tmp_path / "a.nii", ramp()), magic=b"ni1\0")
  with pytest.raises(InputError, match="pair"):
    read_nifti(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_voxels_are_noticed(tmp_path, name):
  noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype("u1")
  data = saved(tmp_path / name, noise).read_bytes()
  (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
  with pytest.raises(InputError, match="truncated"):
    read_nifti(tmp_path / name)
  assert read_nifti_header(tmp_path / name).geometry.shape == (16, 16, 16)


def test_one_wrong_bit_in_the_stored_voxels_is_noticed(tmp_path):
  # A stored (level 0) gzip block has no inner check: only the final checksum can tell.
  raw = saved(tmp_path / "a.nii", ramp("u1", (64, 64, 64))).read_bytes()
  data = bytearray(gzip.compress(raw, compresslevel=0))
  data[len(data) // 2] ^= 1
  (tmp_path / "b.nii.gz").write_bytes(data)
  with pytest.raises(InputError, match="damaged"):
    read_nifti(tmp_path / "b.nii.gz")


def test_a_header_that_asks_for_absurd_memory_is_refused_before_it_is_given(tmp_path):
  path = patched(saved(tmp_path / "a.nii", ramp(shape=(3000, 3, 1))), dim3=32767)
  packed = tmp_path / "b.nii.gz"
  packed.write_bytes(gzip.compress(path.read_bytes()[:1000]))
  tracemalloc.start()
  try:
    for file in (path, packed):
      with pytest.raises(InputError, match="truncated"):
        read_nifti(file)
    assert tracemalloc.get_traced_memory()[1] < 50e6  # the header asks for 590 MB
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("read", [read_nifti, read_nifti_header])
@pytest.mark.parametrize("offset", [1e9, float("inf"), float("nan")])
def test_a_header_without_end_is_refused_before_it_is_read(tmp_path, offset, read):
  path = patched(saved(tmp_path / "a.nii", ramp()), vox_offset=offset)
  with pytest.raises(InputError, match="invalid header"):
    read(path)


def test_zeros_without_end_after_the_voxels_are_not_unpacked(tmp_path):
  whole = saved(tmp_path / "a.nii", ramp()).read_bytes()
  (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(whole + bytes(1 << 24), 1))
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match="more than the voxels"):
      read_nifti(tmp_path / "bomb.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 1e6
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("rest", "accepted"), [
  (bytes(5), True), (bytes(6), False), (b"\0\0\1", False), (bytes(24), False)])
def test_a_file_ends_with_its_voxels(tmp_path, name, rest, accepted):
  """A row has 6 bytes; the rest of a larger image is at least as long."""
  whole = saved(tmp_path / "whole.nii", ramp()).read_bytes() + rest
  (tmp_path / name).write_bytes(gzip.compress(whole) if name.endswith("gz") else whole)
  if accepted:
    np.testing.assert_array_equal(read_nifti(tmp_path / name).array, ramp())
    return
  for read in (read_nifti, read_label):
    with pytest.raises(InputError, match="more than the voxels") as caught:
      read(tmp_path / name)
    assert caught.value.kind == "size"


@pytest.mark.parametrize("read", [read_nifti, read_nifti_header, read_names])
@pytest.mark.parametrize("codes", [(0, 129), (0, -1), (77, 0), (6, 0), (1, 6)])
def test_an_invalid_orientation_is_not_replaced_by_another(tmp_path, read, codes):
  """nibabel sets invalid codes to 0, and assumes an orientation if none is left."""
  path = patched(saved(tmp_path / "a.nii", ramp()), qform_code=codes[0], sform_code=codes[1])
  with pytest.raises(InputError, match=f"form_code is {codes[1] or codes[0]}, not 1 to 5") as error:
    read(path)
  assert error.value.kind == "affine" and error.value.cure


@pytest.mark.parametrize("codes", [(0, 1), (0, 5), (77, 2)])
def test_a_valid_sform_is_used_whatever_the_qform(tmp_path, codes):
  path = patched(saved(tmp_path / "a.nii", ramp()), qform_code=codes[0], sform_code=codes[1])
  np.testing.assert_array_equal(read_nifti(path).affine, AFFINE)


@pytest.mark.parametrize("offset", [0.0, -100.0, 100.0, 348.0, 351.0])
@pytest.mark.parametrize("read", [read_nifti, read_nifti_header, read_names])
def test_voxels_do_not_begin_in_the_header(tmp_path, offset, read):
  path = patched(saved(tmp_path / "a.nii", ramp()), vox_offset=offset)
  with pytest.raises(InputError, match=f"voxels start at byte {offset:g}"):
    read(path)


def test_voxels_do_not_begin_in_the_header_of_nifti_2(tmp_path):
  path = tmp_path / "a.nii"
  nibabel.save(nibabel.Nifti2Image(ramp(), AFFINE), path)
  whole = path.read_bytes()
  for offset in (0, 352, 543):
    path.write_bytes(whole[:168] + struct.pack("<q", offset) + whole[176:])
    with pytest.raises(InputError, match=f"voxels start at byte {offset}"):
      read_nifti(path)


@pytest.mark.parametrize("size", [0, -16, 7, 64, 2**31 - 1])
@pytest.mark.parametrize("order", ["<", ">"])
def test_extensions_end_before_the_voxels(tmp_path, size, order):
  image = nibabel.Nifti1Image(ramp(), AFFINE, nibabel.Nifti1Header(endianness=order))
  image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a comment"))
  path = tmp_path / "a.nii"
  nibabel.save(image, path)
  np.testing.assert_array_equal(read_nifti(path).array, ramp())
  data = bytearray(path.read_bytes())
  assert struct.unpack_from(f"{order}i", data, 352) == (32,)
  struct.pack_into(f"{order}i", data, 352, size)
  path.write_bytes(data)
  for read in (read_nifti, read_nifti_header, read_names):
    with pytest.raises(InputError, match=f"extension of {size} bytes"):
      read(path)


def test_what_nibabel_repairs_is_logged_once(tmp_path, caplog, capfd, monkeypatch):
  for name, value in (("propagate", True), ("handlers", [])):  # commands set both
    monkeypatch.setattr(logging.getLogger("condseg_jax"), name, value)
  caplog.set_level(logging.INFO, logger="condseg_jax.nifti")  # the service's worker silences it
  path = patched(saved(tmp_path / "a.nii", ramp()), pixdim3=-2.5)
  read_nifti_header(path)
  np.testing.assert_array_equal(read_nifti(path).array, ramp())
  message, = caplog.messages
  assert str(path) in message and "pixdim" in message
  assert "pixdim" not in capfd.readouterr().err


def test_numbers_that_float32_cannot_hold(tmp_path):
  array = ramp("f8")
  array[0, 0, :2] = (1e300, -1e39)
  with pytest.raises(InputError, match="2 of 60 voxels are beyond 3.4e") as caught:
    read_nifti(saved(tmp_path / "a.nii", array))
  assert caught.value.kind == "not_finite"


def test_an_origin_beyond_any_scanner(tmp_path):
  far = AFFINE.copy()
  far[2, 3] = 1e20
  with pytest.raises(InputError, match=r"affine contains 1e\+20 mm"):
    read_nifti(saved(tmp_path / "a.nii", ramp(), far))


@pytest.mark.parametrize("datatype", [0, 1, 999])
def test_unknown_voxel_types_are_refused(tmp_path, datatype):
  path = patched(saved(tmp_path / "a.nii", ramp()), datatype=datatype)
  with pytest.raises(InputError):
    read_nifti(path)


def test_an_unreadable_file_is_an_input_error(tmp_path, monkeypatch):
  def refuse(self, mode):
    raise PermissionError(13, "Permission denied")

  path = saved(tmp_path / "a.nii", ramp())
  monkeypatch.setattr(Path, "open", refuse)
  with pytest.raises(InputError, match="cannot be read: Permission denied"):
    read_nifti(path)


@pytest.mark.skipif(not DATA, reason="CONDSEG_TEST_DATA is not set")
def test_real_files_come_back_as_they_were(tmp_path):
  root = Path(DATA)
  label = root / "ct_sample/ct_labels.nii.gz"
  for path in [*sorted((root / "hippocampus/imagesTr").glob("*.nii.gz"))[:5],
               root / "ct_sample/ct.nii.gz", label]:
    volume = read_nifti(path)
    assert corner_distance(read_nifti_header(path).geometry, volume.geometry) == 0.0
    np.testing.assert_array_equal(volume.array, np.asanyarray(nibabel.load(path).dataobj))
    write_nifti(tmp_path / "copy.nii.gz", volume, label=path == label)
    again = read_nifti(tmp_path / "copy.nii.gz")
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.affine.tobytes() == volume.affine.tobytes()
