"""MetaImage and NRRD: the same voxels in the same places as NIfTI, and nothing assumed."""

import gzip
import os
from pathlib import Path
import tracemalloc
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.nifti import read_nifti

VOXELS = np.random.default_rng(0).integers(-500, 500, (4, 5, 6)).astype(np.int16)
WHOLE = VOXELS.tobytes()
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 1 2 3
ElementSpacing = 0.5 0.6 2
DimSize = 6 5 4
ElementType = MET_SHORT
ElementDataFile = a.raw
"""
NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 6 5 4
space directions: (0.5,0,0) (0,0.6,0) (0,0,2)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (1,2,3)
"""


def image(voxels=VOXELS):
  """Anisotropic, turned, off the origin."""
  out = sitk.GetImageFromArray(voxels)
  out.SetSpacing([0.7, 0.8, 2.5])
  out.SetOrigin([10.0, -20.0, 30.0])
  turn = sitk.Euler3DTransform()
  turn.SetRotation(0.1, -0.2, 0.3)
  out.SetDirection(turn.GetMatrix())
  return out


def meta(folder, stored=WHOLE, **changes):
  """A header by hand; a change to None leaves the field out."""
  fields = {**dict(line.split(" = ") for line in META.splitlines()), **changes}
  data = fields.pop("ElementDataFile")
  text = "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None)
  text += f"ElementDataFile = {data}\n"
  (folder / "a.raw").write_bytes(stored)
  (folder / "a.mhd").write_bytes(text.encode("latin-1") + (stored if data == "LOCAL" else b""))
  return folder / "a.mhd"


@pytest.mark.parametrize("name", [b"caf\xe9.mha", b"caf\xe9.nrrd", b"caf\xe9.mhd"])
def test_names_that_are_not_utf_8(name, tmp_path):
  """SimpleITK itself takes UTF-8 only."""
  folder = tmp_path / os.fsdecode(b"gr\xf6sse")
  folder.mkdir()
  plain = tmp_path / f"a{Path(os.fsdecode(name)).suffix}"
  sitk.WriteImage(image(), str(plain))
  expected = files.read_volume(plain)
  for path in tmp_path.glob("a.*"):  # .mhd has its voxels in a.raw
    path.rename(folder / (os.fsdecode(name) if path == plain else path.name))
  found = files.read_volume(folder / os.fsdecode(name))
  np.testing.assert_array_equal(found.array, expected.array)
  np.testing.assert_array_equal(found.affine, expected.affine)


def nrrd(folder, without="", text=NRRD, stored=WHOLE):
  lines = [line for line in text.splitlines() if not without or not line.startswith(without)]
  (folder / "a.nrrd").write_bytes("\n".join([*lines, "", ""]).encode() + stored)
  return folder / "a.nrrd"


def packed_meta(folder, content, **changes):
  packed = zlib.compress(content)
  return meta(folder, packed, **{"CompressedData": "True", "CompressedDataSize": len(packed),
                                 **changes})


def detached_nrrd(folder, content):
  (folder / "a.raw").write_bytes(content)
  return nrrd(folder, text=NRRD + "data file: a.raw\n", stored=b"")


def packed_nrrd(folder, content, fields=""):
  return nrrd(folder, text=NRRD.replace("encoding: raw", "encoding: gzip") + fields,
              stored=gzip.compress(content))


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "a.nrrd", "a.nhdr", "A.MHA"])
@pytest.mark.parametrize("compressed", [False, True])
def test_as_simpleitk_writes_it_to_nifti(name, compressed, tmp_path):
  sitk.WriteImage(image(), str(tmp_path / name.lower()), compressed)
  (tmp_path / name.lower()).rename(tmp_path / name)
  sitk.WriteImage(image(), str(tmp_path / "a.nii"))
  volume, reference = files.read_volume(tmp_path / name), read_nifti(tmp_path / "a.nii")
  np.testing.assert_array_equal(volume.array, reference.array)
  assert volume.array.dtype == np.int16
  np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-4)
  header = files.read_header(tmp_path / name)
  assert header.geometry.shape == volume.array.shape
  np.testing.assert_array_equal(header.geometry.affine, volume.affine)
  assert header.peak_bytes >= 2 * volume.array.nbytes
  expected = {tmp_path / name} | set(tmp_path.glob("a.*raw*"))
  assert set(files.members(tmp_path / name)) == expected


@pytest.mark.parametrize("write", [meta, nrrd])
def test_headers_by_hand(write, tmp_path):
  volume = files.read_volume(write(tmp_path))
  np.testing.assert_array_equal(volume.array, VOXELS.transpose(2, 1, 0))
  np.testing.assert_allclose(volume.affine, [[-0.5, 0, 0, -1], [0, -0.6, 0, -2], [0, 0, 2, 3],
                                             [0, 0, 0, 1]])


def test_a_label_keeps_its_values(tmp_path):
  label = (VOXELS > 0).astype(np.uint8)
  sitk.WriteImage(image(label), str(tmp_path / "l.nrrd"))
  np.testing.assert_array_equal(files.read_label(tmp_path / "l.nrrd").array,
                                label.transpose(2, 1, 0))


@pytest.mark.parametrize("field", ["TransformMatrix", "Offset", "ElementSpacing"])
def test_a_missing_geometry_is_never_assumed_in_metaimage(field, tmp_path):
  path = meta(tmp_path, **{field: None})
  for read in (files.read_volume, files.read_header):
    with pytest.raises(InputError, match=f"no {field}") as caught:
      read(path)
    assert caught.value.kind == "affine" and field in caught.value.cure


@pytest.mark.parametrize("field", ["space:", "space directions", "space origin"])
def test_a_missing_geometry_is_never_assumed_in_nrrd(field, tmp_path):
  with pytest.raises(InputError, match="incomplete geometry") as caught:
    files.read_volume(nrrd(tmp_path, field))
  assert caught.value.kind == "affine"


@pytest.mark.parametrize(("space", "signs"), [
    ("left-posterior-superior", (-1, -1)), ("RAS", (1, 1)), ("Left-Anterior-Superior", (-1, 1))])
def test_the_spaces_of_a_patient_in_nrrd(space, signs, tmp_path):
  text = NRRD.replace("left-posterior-superior", space)
  affine = files.read_volume(nrrd(tmp_path, text=text)).affine
  np.testing.assert_allclose(affine[:2, 3], np.multiply(signs, (1, 2)))
  np.testing.assert_allclose(np.diag(affine)[:2], np.multiply(signs, (0.5, 0.6)))


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("left-posterior-superior", "scanner-xyz", "'scanner-xyz'"),
    ("left-posterior-superior", "3D-right-handed", "'3D-right-handed'"),
    ("space: left-posterior-superior", "space dimension: 3", "no space"),
    ("(0.5,0,0)", "none", "must be 9 finite"), ("(1,2,3)", "(1,nan,3)", "must be 3 finite"),
    ("endian", 'space units: "cm" "cm" "cm"\nendian', "the units cm"),
])
def test_a_nrrd_that_names_no_place_in_a_patient(old, new, reason, tmp_path):
  """SimpleITK takes all of these as left, posterior, superior, in mm."""
  assert old in NRRD
  with pytest.raises(InputError, match=reason) as caught:
    files.read_volume(nrrd(tmp_path, text=NRRD.replace(old, new)))
  assert caught.value.kind == "affine"


@pytest.mark.parametrize(("changes", "reason", "kind"), [
    ({"ElementDataFile": "../a.raw"}, "not to one file in the same folder", "unreadable"),
    ({"ElementDataFile": "/etc/passwd"}, "not to one file in the same folder", "unreadable"),
    ({"ElementDataFile": "LIST"}, "not to one file in the same folder", "unreadable"),
    ({"ElementDataFile": ""}, "not to one file in the same folder", "unreadable"),
    ({"ElementDataFile": "b.raw"}, "b.raw is missing", "unreadable"),
    ({"DimSize": "6 5 5"}, "truncated: a.raw has 240 of 300 bytes", "truncated"),
    ({"NDims": 4, "DimSize": "6 5 2 2"}, "4-D", "4-D"),
    ({"NDims": 2, "DimSize": "6 5"}, "2-D", "2-D"),
    ({"DimSize": "6 5"}, "size", "unreadable"),
    ({"ElementNumberOfChannels": 2, "DimSize": "3 5 4"}, "2 numbers per voxel", "unreadable"),
    ({"ElementSpacing": "0.5 0 2"}, "spacing", "unreadable"),
    ({"ElementSpacing": "0.5 -1 2"}, "spacing", "unreadable"),
    ({"ElementSpacing": "0.5 2"}, "must be 3 finite numbers, not '0.5 2'", "affine"),
    ({"Offset": "1 2"}, "must be 3 finite numbers", "affine"),
    ({"Offset": "1 2 inf"}, "must be 3 finite numbers", "affine"),
    ({"TransformMatrix": "1 0 0 0 1 0"}, "must be 9 finite numbers", "affine"),
    ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "lengths 2 x 1 x 1, not 1", "direction"),
    ({"DimSize": "0 5 4"}, "size", "unreadable"),
    ({"Offset": "1 2 1e20"}, "1e\\+20 mm", "unreadable"),
    ({"ElementSpacing": "1 1 1e300"}, "1e\\+300 mm", "unreadable"),
    ({"BinaryData": "False"}, "as text", "unreadable"),
])
def test_what_is_refused(changes, reason, kind, tmp_path):
  with pytest.raises(InputError, match=reason) as caught:
    files.read_volume(meta(tmp_path, **changes))
  assert caught.value.kind == kind and caught.value.cure


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("content", [b"", b"hello", b"NDims = 3\n", b"NRRD0004\ndimension: 3\n"])
def test_files_that_are_none(name, content, tmp_path):
  (tmp_path / name).write_bytes(content)
  for read in (files.read_volume, files.read_header):
    with pytest.raises(InputError):
      read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated(name, compressed, tmp_path):
  sitk.WriteImage(image(np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)),
                  str(tmp_path / name), compressed)
  data = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(data[:len(data) // 2])
  with pytest.raises(InputError, match="truncated|cannot be read") as caught:
    files.read_volume(tmp_path / name)
  assert caught.value.kind == "truncated"


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("harm", ["a byte in the middle", "the last bytes"])
def test_compressed_voxels_that_are_damaged(name, harm, tmp_path):
  """MetaImage's own reader gives half of the voxels wrong, and no error."""
  voxels = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
  sitk.WriteImage(image(voxels), str(tmp_path / name), True)
  path = max(tmp_path.iterdir(), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  if harm == "the last bytes":
    del data[-4:]
  else:
    data[len(data) // 2] ^= 255
  path.write_bytes(data)
  with pytest.raises(InputError, match="compressed voxels") as caught:
    files.read_volume(tmp_path / name)
  assert caught.value.kind == "truncated" and caught.value.subject == str(tmp_path / name)


def test_nan(tmp_path):
  voxels = VOXELS.astype(np.float32)
  voxels[1, 2, 3] = np.nan
  sitk.WriteImage(image(voxels), str(tmp_path / "a.mha"))
  with pytest.raises(InputError, match="1 of 120 voxels") as caught:
    files.read_volume(tmp_path / "a.mha")
  assert caught.value.kind == "not_finite"


# --- headers that lie about the size ------------------------------------------------------------
WRONG = {"nothing": b"", "a voxel too few": WHOLE[:-2], "a slice too few": WHOLE[:-60],
         "a byte too many": WHOLE + b"x", "a slice too many": WHOLE + bytes(60)}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("write", [
    lambda folder, content: meta(folder, content),
    lambda folder, content: meta(folder, content, ElementDataFile="LOCAL"),
    lambda folder, content: packed_meta(folder, content),
    lambda folder, content: packed_meta(folder, content, ElementDataFile="LOCAL"),
    lambda folder, content: packed_meta(folder, content, CompressedDataSize=None),
    lambda folder, content: nrrd(folder, stored=content),
    lambda folder, content: detached_nrrd(folder, content),
    lambda folder, content: packed_nrrd(folder, content),
], ids=["mhd", "mha", "packed mhd", "packed mha", "packed mhd without size", "nrrd", "nhdr",
        "packed nrrd"])
def test_voxels_of_another_size_than_declared(kind, write, tmp_path):
  """ITK fills missing compressed voxels with the memory of the process."""
  path = write(tmp_path, WRONG[kind])
  for read in (files.read_volume, files.read_label):
    with pytest.raises(InputError, match="bytes") as caught:
      read(path)
    assert caught.value.kind == ("size" if "many" in kind else "truncated")
    assert caught.value.subject == str(path) and caught.value.cure


def test_the_same_files_with_the_right_size(tmp_path):
  for write in (meta, packed_meta, packed_nrrd):
    np.testing.assert_array_equal(files.read_volume(write(tmp_path, WHOLE)).array, VOXELS.T)
  for size in ({}, {"CompressedDataSize": None}):
    path = packed_meta(tmp_path, WHOLE, **size)
    np.testing.assert_array_equal(files.read_volume(path).array, VOXELS.T)


@pytest.mark.parametrize(("size", "local", "reason"), [
    (None, True, "no CompressedDataSize"), ("0", True, "is 0"), ("-1", False, "is -1"),
    (100, False, "is 100"), (100000, False, "is 100000")])
def test_the_size_of_the_compressed_voxels_must_be_right(size, local, reason, tmp_path):
  """ITK would unpack the header, or a part of the data."""
  path = packed_meta(tmp_path, WHOLE, CompressedDataSize=size,
                     **{"ElementDataFile": "LOCAL"} if local else {})
  with pytest.raises(InputError, match=reason):
    files.read_volume(path)


def test_compressed_voxels_without_end_are_not_unpacked(tmp_path):
  path = packed_meta(tmp_path, bytes(1 << 24))
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match="contain more"):
      files.read_volume(path)
    assert tracemalloc.get_traced_memory()[1] < 4e6
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(("skip", "before", "reason"), [
    ("0", b"", ""), ("7", bytes(7), ""), ("-1", bytes(7), ""), ("-1", b"", ""),
    ("6", bytes(7), "241 bytes of voxels"), ("8", bytes(7), "truncated"),
    ("0", bytes(7), "247 bytes of voxels"), ("999", b"", "truncated")])
def test_bytes_before_the_voxels_of_a_metaimage(skip, before, reason, tmp_path):
  path = meta(tmp_path, before + WHOLE, HeaderSize=skip)
  if reason:
    with pytest.raises(InputError, match=reason):
      files.read_volume(path)
  else:
    np.testing.assert_array_equal(files.read_volume(path).array, VOXELS.T)


def test_voxels_do_not_begin_in_the_header(tmp_path):
  with pytest.raises(InputError, match="HeaderSize is 9"):
    files.read_volume(meta(tmp_path, HeaderSize=9, ElementDataFile="LOCAL"))
  with pytest.raises(InputError, match="truncated"):
    files.read_volume(meta(tmp_path, WHOLE[:-2], HeaderSize=-1, ElementDataFile="LOCAL"))
  with pytest.raises(InputError, match="bytes of voxels in a.mhd"):
    files.read_volume(meta(tmp_path, ElementDataFile="a.mhd"))


@pytest.mark.parametrize(("skip", "before", "packed", "reason"), [
    ("7", bytes(7), False, ""), ("-1", bytes(7), False, ""), ("7", bytes(7), True, ""),
    ("6", bytes(7), False, "241 bytes of voxels"), ("8", bytes(7), False, "truncated"),
    ("6", bytes(7), True, "contain more"), ("8", bytes(7), True, "247 of 248 bytes"),
    ("-1", bytes(7), True, "byte skip -1"), ("-8", bytes(7), False, "byte skip -8")])
def test_bytes_before_the_voxels_of_a_nrrd(skip, before, packed, reason, tmp_path):
  field = f"byte skip: {skip}\n"
  path = (packed_nrrd(tmp_path, before + WHOLE, field) if packed else
          nrrd(tmp_path, text=NRRD + field, stored=before + WHOLE))
  if reason:
    with pytest.raises(InputError, match=reason):
      files.read_volume(path)
  else:
    np.testing.assert_array_equal(files.read_volume(path).array, VOXELS.T)


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("raw", "ascii", "encoding 'ascii'"), ("raw", "hex", "encoding 'hex'"),
    ("raw", "bzip2", "encoding 'bzip2'"), ("endian", "line skip: 1\nendian", "skips lines")])
def test_how_a_nrrd_cannot_be_checked(old, new, reason, tmp_path):
  with pytest.raises(InputError, match=reason):
    files.read_volume(nrrd(tmp_path, text=NRRD.replace(old, new)))


def test_a_gzip_nrrd_is_gzip(tmp_path):
  """ITK reads anything else as if it were not compressed; several parts are one file."""
  text = NRRD.replace("encoding: raw", "encoding: gzip")
  for stored in (zlib.compress(np.random.default_rng(1).bytes(240)), WHOLE):
    with pytest.raises(InputError, match="damaged"):
      files.read_volume(nrrd(tmp_path, text=text, stored=stored))
  parts = gzip.compress(WHOLE[:100]) + gzip.compress(WHOLE[100:])
  np.testing.assert_array_equal(
      files.read_volume(nrrd(tmp_path, text=text, stored=parts)).array, VOXELS.T)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"Offset": "1 2 3\ngarbage"}, "line 8 of its header is not 'key = value'"),
    ({"Comment": "a\0b"}, "line 11 of its header is not 'key = value'"),
    ({"Comment": 500 * "x"}, "has 510 bytes"), ({"Offset": "1 2 3\nOffset = 1 2 3"}, "given twice"),
    ({"Position": "3 2 1"}, "contradictory fields: Offset and Position"),
    ({"ElementByteOrderMSB": "True"}, "contradictory fields"),
    ({"Offset": "(1 2 3)"}, "must be 3"), ({"Offset": "1_0 2 3"}, "must be 3"),
    ({"DimSize": "6 5 \xb2"}, "size"), ({"DimSize": "6\xa05 4"}, "size"),
    ({"CompressedDataSize": "100}"}, "not a whole number"),
    ({"CompressedData": "1e30"}, "not True or False"), ({"ObjectType": "Tube"}, "'Tube'"),
    ({"ElementType": "MET_OTHER"}, "'MET_OTHER'"), ({"ElementType": None}, "voxel type ''"),
    ({"NDims": None, "DimSize": "6 5 4\nNDims = 3"}, "NDims must come first")])
def test_fields_that_metaio_does_not_check(changes, reason, tmp_path, capfd):
  """It joins a line that is no field with the next one, or prints lines of its own."""
  with pytest.raises(InputError, match=reason):
    files.read_volume(meta(tmp_path, **changes))
  assert capfd.readouterr().err == ""


def test_fields_that_are_longer_or_blank_in_a_metaimage(tmp_path):
  text = 9000 * "x"
  path = meta(tmp_path, **{"Offset": "1 2 3\n\r", "0008|2111": text, "0010|0010": "\x1b$B",
                           "0008|0060": ""})
  np.testing.assert_array_equal(files.read_volume(path).array, VOXELS.T)


@pytest.mark.parametrize(("line", "reason"), [
    ("content: " + 500 * "x", "line 11 of its header has 509 bytes"),
    ("type: short", "type is given twice"),
    ("garbage", "line 11 of its header is not 'key: value'")])
def test_fields_that_end_the_process_in_a_nrrd(line, reason, tmp_path):
  with pytest.raises(InputError, match=reason):
    files.read_volume(nrrd(tmp_path, text=f"{NRRD}{line}\n"))


def test_comments_and_free_text_in_a_nrrd_may_be_long(tmp_path):
  path = nrrd(tmp_path, text=f"{NRRD}# {9000 * 'x'}\nSegment0_Tags:={9000 * 'x'}\n")
  np.testing.assert_array_equal(files.read_volume(path).array, VOXELS.T)


def test_comments_and_free_text_in_a_nrrd_are_no_fields(tmp_path):
  text = NRRD.replace("encoding: raw", "Encoding: raw\n# encoding: gzip\nencoding:=hex")
  np.testing.assert_array_equal(files.read_volume(nrrd(tmp_path, text=text)).array, VOXELS.T)


@pytest.mark.parametrize("shear", [0.0, 0.2])
def test_a_label_map_as_nrrd_is_read_back(tmp_path, shear):
  """By this reader, and in world coordinates by SimpleITK alone."""
  label = np.random.default_rng(1).integers(0, 300, (4, 5, 6))
  affine = np.array([[0.8, -0.6, shear, 7], [0.6, 0.8, 0, -9], [0, 0, -2.5, 3], [0, 0, 0, 1]])
  files.write_label(tmp_path / "a.nrrd", label, affine, {"a": 1})
  read = files.read_volume(tmp_path / "a.nrrd")
  np.testing.assert_array_equal(read.array, label)
  np.testing.assert_allclose(read.affine, affine, atol=1e-12)
  image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
  assert image.GetPixelID() == sitk.sitkUInt16 and image[3, 0, 5] == label[3, 0, 5]
  point = affine @ [3, 0, 5, 1]
  np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((3, 0, 5)),
                             point[:3] * [-1, -1, 1], atol=1e-9)
  assert [path.name for path in tmp_path.iterdir()] == ["a.nrrd"]
  with pytest.raises(InputError, match="cannot be written"):
    files.write_label(tmp_path / "none" / "a.nrrd", label, affine, {"a": 1})
