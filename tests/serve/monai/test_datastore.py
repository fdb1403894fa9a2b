"""The folder of images: ids never leave it, nothing is replaced by accident or half-written."""

import gzip
import os

from hypothesis import given
from hypothesis import strategies as st
import pytest

from condseg_jax.errors import InputError
from condseg_jax.serve.monai import datastore
from condseg_jax.serve.monai.datastore import Datastore
from condseg_jax.serve.request import HttpError
from support.service import nifti
from support.service import series

OUTWARD = ["../secret", "..", ".", "", "/etc/passwd", "labels/final/a", "a/../a", "a\0", "a\n",
           ".hid", "a.nii", "x" * 121, "a;b", 'a"b']


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "secret.nii").write_bytes(nifti())
  made = tmp_path / "images"
  made.mkdir()
  for name in ("b.nii", "a.nii.gz", ".hidden.nii", "notes.txt"):
    (made / name).write_bytes(nifti())
  (made / "folder.nii").mkdir()
  return made


@pytest.fixture
def received(tmp_path):
  path = tmp_path / "body"
  path.write_bytes(nifti())
  return path


def tree(folder):
  return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
          for path in folder.rglob("*")}


def test_images_are_files_of_known_formats(folder):
  assert list(Datastore(folder).images()) == ["a", "b"]


def test_without_a_folder(tmp_path):
  with pytest.raises(InputError, match="is not a folder"):
    Datastore(tmp_path / "none")


@pytest.mark.parametrize("name", OUTWARD)
def test_ids_and_tags_do_not_lead_outside(folder, received, name):
  store, before = Datastore(folder), tree(folder.parent)
  calls = [lambda: store.image(name), lambda: store.label(name, "final"),
           lambda: store.label("a", name), lambda: store.save_label(name, "final", received),
           lambda: store.save_label("a", name, received), lambda: store.add_image(name, received)]
  for call in calls:
    with pytest.raises(HttpError) as caught:
      call()
    assert caught.value.status in (400, 404) and str(folder) not in str(caught.value)
  assert tree(folder.parent) == before


@given(st.text(max_size=130))
def test_whatever_the_id_a_new_image_lies_in_the_folder(tmp_path_factory, name):
  folder = tmp_path_factory.mktemp("store")
  (folder / "images").mkdir()
  (folder / "body").write_bytes(nifti())
  store = Datastore(folder / "images")
  try:
    store.add_image(name, folder / "body")
  except HttpError:
    assert not os.listdir(folder / "images")
  else:
    assert os.listdir(folder / "images") == [f"{name}.nii"] and list(store.images()) == [name]
  assert sorted(os.listdir(folder)) == ["body", "images"]


@pytest.mark.parametrize("content, suffix", [(nifti(), ".nii"), (gzip.compress(nifti()), ".nii.gz"),
                                             (series(), ".zip")], ids=["nii", "nii.gz", "zip"])
def test_formats_by_their_content(folder, received, content, suffix):
  received.write_bytes(content)
  Datastore(folder).add_image("new", received)
  assert (folder / f"new{suffix}").read_bytes() == content
  with pytest.raises(HttpError, match="409"):
    Datastore(folder).add_image("new", received)


@pytest.mark.parametrize("content", [b"", b"text " * 200, gzip.compress(b"text " * 200),
                                     gzip.compress(nifti())[:100]],
                         ids=["nothing", "text", "packed text", "cut"])
def test_other_formats_are_refused(folder, received, content):
  received.write_bytes(content)
  before = tree(folder)
  for call in (lambda: Datastore(folder).add_image("new", received),
               lambda: Datastore(folder).save_label("a", "final", received)):
    with pytest.raises(HttpError) as caught:
      call()
    assert caught.value.status in (415, 422)
  assert tree(folder) == before


def test_some_of_the_disk_is_left_to_others(folder, received, monkeypatch):
  monkeypatch.setattr(datastore, "FREE_BYTES", 1 << 62)
  before = tree(folder)
  with pytest.raises(HttpError, match="507"):
    Datastore(folder).add_image("new", received)
  assert tree(folder) == before


def test_a_label_is_stored_compressed_and_replaced(folder, received):
  store = Datastore(folder)
  store.save_label("a", "final", received)
  assert gzip.decompress((folder / "labels/final/a.nii.gz").read_bytes()) == nifti()
  received.write_bytes(gzip.compress(nifti(), 9))
  store.save_label("a", "final", received)
  assert (folder / "labels/final/a.nii.gz").read_bytes() == received.read_bytes()
  assert os.listdir(folder / "labels/final") == ["a.nii.gz"]  # no temporary file
  assert store.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
  assert store.unlabelled() == ["b"]
