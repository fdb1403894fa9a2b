"""One door to all formats: the name decides."""

import os
import signal

import numpy as np
import pytest

from condseg_jax.errors import InputError
from condseg_jax.formats import files
from condseg_jax.formats.nifti import read_names
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume
from support.dicom_files import write_series

AFFINE = np.array([[2.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
IMAGE = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 5
LABEL = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a.b.nii"])
def test_nifti_by_name(name, tmp_path):
  write_nifti(tmp_path / name, Volume(IMAGE, AFFINE))
  volume = files.read_volume(str(tmp_path / name))
  np.testing.assert_array_equal(volume.array, IMAGE)
  np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize("name", ["a.png", "A.PNG"])
def test_png_by_name(name, tmp_path):
  picture = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
  write_png(tmp_path / name, picture)
  volume = files.read_volume(tmp_path / name)
  np.testing.assert_array_equal(volume.array, picture)
  assert volume.ndim == 2


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png"])
def test_a_label_comes_back(name, tmp_path):
  label = LABEL if "nii" in name else LABEL[0]
  affine = AFFINE if "nii" in name else np.eye(3)
  files.write_label(tmp_path / name, label, affine, {"liver": 1, "spleen": 2})
  volume = files.read_label(tmp_path / name)
  np.testing.assert_array_equal(volume.array, label)
  assert volume.array.dtype == np.uint8
  np.testing.assert_array_equal(volume.affine, affine)
  if "nii" in name:
    assert read_names(tmp_path / name) == {"liver": 1, "spleen": 2}
  assert [p.name for p in tmp_path.iterdir()] == [name]


def test_labels_past_255_stay_apart(tmp_path):
  label = np.array([[0, 1], [256, 300]], np.uint16)
  files.write_label(tmp_path / "a.png", label, np.eye(3), {})
  np.testing.assert_array_equal(files.read_label(tmp_path / "a.png").array, label)


def test_a_label_of_fractions_is_refused(tmp_path):
  write_nifti(tmp_path / "a.nii", Volume(LABEL * np.float32(0.5), AFFINE))
  files.read_volume(tmp_path / "a.nii")
  with pytest.raises(InputError, match="fraction"):
    files.read_label(tmp_path / "a.nii")


def test_a_label_of_colours_is_refused(tmp_path):
  write_png(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
  with pytest.raises(InputError, match="colour") as caught:
    files.read_label(tmp_path / "a.png")
  assert caught.value.subject == str(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.bmp", "a.mat", "a.nii.bz2", "a", "nii", "a.gz"])
def test_other_formats_are_refused_by_name(name, tmp_path):
  (tmp_path / name).write_bytes(b"x")
  for act in (files.read_volume, files.read_label,
              lambda path: files.write_label(path, LABEL, AFFINE, {})):
    with pytest.raises(InputError, match="format") as caught:
      act(tmp_path / name)
    assert name in caught.value.subject and ".nii.gz" in caught.value.cure
  assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a.png", "a.nii", "a.nii.gz"])
def test_a_missing_file_is_named(name, tmp_path):
  for read in (files.read_volume, files.read_label):
    with pytest.raises(InputError, match=name):
      read(tmp_path / name)


@pytest.mark.parametrize(("name", "stem"), [
    ("x/case_1.nii.gz", "case_1"), ("case_1.nii", "case_1"), ("a.b.png", "a.b"),
    ("A.NII.GZ", "A"), ("a.nii.png", "a.nii"), ("plain", "plain"), ("a.jpg", "a"),
    ("a.xyz", "a.xyz")])
def test_stem(name, stem):
  assert files.stem(name) == stem


def test_images_of_a_folder_in_order(tmp_path):
  for name in ("b.png", "a.nii.gz", "c.NII", "a.txt", ".hidden.png", "dataset.json"):
    (tmp_path / name).touch()
  assert [p.name for p in files.list_images(tmp_path)] == ["a.nii.gz", "b.png", "c.NII"]
  assert files.list_images(tmp_path / "b.png") == [tmp_path / "b.png"]


def test_images_of_a_list_need_not_have_names_in_utf_8(tmp_path):
  names = [os.fsdecode(b"caf\xe9.nii.gz"), "a b.png", "form\ffeed.png"]
  for name in names:
    (tmp_path / name).touch()
  (tmp_path / "list.txt").write_bytes(b"\r\n".join(map(os.fsencode, names)) + b"\n\n")
  assert files.list_images(tmp_path / "list.txt") == [tmp_path / name for name in names]
  (tmp_path / "list.txt").write_bytes("a b.png".encode("utf-16"))
  with pytest.raises(InputError, match="is not a text file"):
    files.list_images(tmp_path / "list.txt")


def test_no_images(tmp_path):
  with pytest.raises(InputError, match="does not exist"):
    files.list_images(tmp_path / "nowhere")
  with pytest.raises(InputError, match="contains no image"):
    files.list_images(tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "a.mha", "a.tif"])
def test_labels_are_not_written_in_every_format(name, tmp_path):
  with pytest.raises(InputError, match="format"):
    files.write_label(tmp_path / name, LABEL, AFFINE, {})


def test_a_folder_of_dicom_is_one_image(tmp_path):
  write_series(tmp_path / "scan", IMAGE, np.diag([-1.0, -1, 2, 1]))
  assert files.list_images(tmp_path / "scan") == [tmp_path / "scan"]
  assert files.stem(tmp_path / "scan") == "scan"
  np.testing.assert_array_equal(files.read_volume(tmp_path / "scan").array, IMAGE)


def test_members_and_headers_of_plain_files(tmp_path):
  write_nifti(tmp_path / "a.nii.gz", Volume(IMAGE, AFFINE))
  write_png(tmp_path / "a.png", LABEL[0])
  for name, shape in (("a.nii.gz", IMAGE.shape), ("a.png", LABEL[0].shape)):
    assert files.members(tmp_path / name) == [tmp_path / name]
    header = files.read_header(tmp_path / name)
    assert header.geometry.shape == shape and header.peak_bytes >= np.prod(shape)


@pytest.fixture
def no_waiting():
  def interrupt(*_):
    raise TimeoutError
  before = signal.signal(signal.SIGALRM, interrupt)
  signal.alarm(10)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("suffix", files.READERS)
def test_a_pipe_is_not_waited_for(suffix, tmp_path, no_waiting):
  path = tmp_path / f"a{suffix}"
  os.mkfifo(path)
  for read in (files.read_volume, files.read_header, files.list_images):
    with pytest.raises(InputError, match="is not a regular file"):
      read(path)


def test_a_device_is_not_read(tmp_path, no_waiting):
  (tmp_path / "a.nii").symlink_to("/dev/zero")
  with pytest.raises(InputError, match="is not a regular file"):
    files.read_volume(tmp_path / "a.nii")


def test_pipes_beside_images_are_not_waited_for(tmp_path, no_waiting):
  write_series(tmp_path, IMAGE, np.diag([-1.0, -1, 2, 1]))
  os.mkfifo(tmp_path / "a")
  assert files.list_images(tmp_path) == [tmp_path]
  with pytest.raises(InputError, match="a: is not a regular file"):
    files.read_volume(tmp_path)
  os.mkfifo(tmp_path / "list.txt")
  with pytest.raises(InputError, match="is not a regular file"):
    files.list_images(tmp_path / "list.txt")
  text = ("NDims = 3\nDimSize = 1 1 1\nElementSpacing = 1 1 1\nOffset = 0 0 0\n"
          "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_CHAR\nElementDataFile = a\n")
  (tmp_path / "a.mhd").write_text(text)
  with pytest.raises(InputError, match="a: is not a regular file"):
    files.read_volume(tmp_path / "a.mhd")
