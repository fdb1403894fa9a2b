"""What a path leads to: stores, raw folders prepared once, and errors before any long work."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from condseg_jax.data.store import Store
from condseg_jax.datasets import discover
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.prepare import prepare
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume


def write_msd(root, count=2, spacing=(1.0, 1.0, 2.0), modality="CT", name="liver"):
  affine = np.diag([*spacing, 1.0])
  rng = np.random.default_rng(len(root.name))
  training = []
  for folder in ("imagesTr", "labelsTr"):
    (root / folder).mkdir(parents=True)
  for i in range(count):
    label = np.zeros((6, 7, 8), np.uint8)
    label[2:4, 3:5, 2:7] = 1
    image = rng.integers(-100, 100, label.shape).astype(np.int16)
    entry = {"image": f"imagesTr/{i}.nii", "label": f"labelsTr/{i}.nii"}
    write_nifti(root / entry["image"], Volume(image, affine))
    write_nifti(root / entry["label"], Volume(label, affine), label=True)
    training.append(entry)
  (root / "dataset.json").write_text(json.dumps(
      {"modality": {"0": modality}, "labels": {"1": name}, "training": training}))
  return root


def write_camvid(root):
  for folder in ("train", "trainannot"):
    (root / folder).mkdir(parents=True)
  write_png(root / "train" / "0.png", np.zeros((4, 4, 3), np.uint8))
  write_png(root / "trainannot" / "0.png", np.zeros((4, 4), np.uint8))
  (root / "classes.json").write_text(json.dumps({"classes": ["sky"], "ignore": 1}))
  return root


def opened(root, cache, spacing=None):
  return discover.open_stores(root, spacing, cache, progress=False)


def made(root, out, spacing=None):
  return prepare(read_msd(root), out, spacing, progress=False)


@pytest.fixture
def forbid_preparing(monkeypatch):
  def forbid():
    def fail(*_, **__):
      raise AssertionError("prepared again")
    monkeypatch.setattr(discover.prepare_lib, "prepare", fail)
  return forbid


# --- what is found ------------------------------------------------------------------------------
def test_a_path_is_a_store_or_a_layout_or_a_folder_of_them(tmp_path):
  write_msd(tmp_path / "all" / "b")
  write_camvid(tmp_path / "all" / "a")
  store = made(tmp_path / "all" / "b", tmp_path / "all" / "c")
  (tmp_path / "all" / "notes").mkdir()
  (tmp_path / "all" / "readme.txt").touch()
  pictures, volumes, prepared = discover.discover(tmp_path / "all")
  assert isinstance(pictures, RawFolder) and pictures.modality == "rgb"
  assert isinstance(volumes, RawFolder) and volumes.classes == ("liver",)
  assert prepared == store
  assert discover.discover(str(tmp_path / "all" / "c")) == [store]
  found, = discover.discover(tmp_path / "all" / "b")
  assert found == volumes


@pytest.mark.parametrize("act", [discover.discover, discover.open_stores])
def test_no_path_is_wrong_usage(act):
  with pytest.raises(InputError, match="data.root.*not set") as caught:
    act("")
  assert caught.value.usage and "prepared store" in caught.value.cure


def test_nothing_there(tmp_path):
  with pytest.raises(InputError, match="does not exist") as caught:
    discover.discover(tmp_path / "nowhere")
  assert caught.value.subject == str(tmp_path / "nowhere") and not caught.value.usage
  (tmp_path / "inner" / "deep").mkdir(parents=True)
  write_msd(tmp_path / "inner" / "deep" / "x")
  (tmp_path / "file").touch()
  for root in (tmp_path, tmp_path / "file"):
    with pytest.raises(InputError, match="neither") as caught:
      discover.discover(root)
    assert "manifest.json" in caught.value.cure and "msd" in caught.value.cure


@pytest.mark.parametrize("depth", [0, 1])
def test_an_unfinished_store_is_not_passed_over(depth, tmp_path):
  """Training would otherwise go on without that dataset, and nobody would know."""
  write_msd(tmp_path / "raw")
  made(tmp_path / "raw", tmp_path / "all" / "a")
  made(tmp_path / "raw", tmp_path / "all" / "b")
  (tmp_path / "all" / "b" / "manifest.json").unlink()
  with pytest.raises(InputError, match="manifest.json") as caught:
    discover.discover(tmp_path / "all" if depth else tmp_path / "all" / "b")
  assert caught.value.subject.endswith("b")


def test_a_damaged_dataset_is_not_passed_over(tmp_path):
  write_msd(tmp_path / "a")
  (write_msd(tmp_path / "b") / "dataset.json").write_text("{")
  with pytest.raises(InputError, match="b/dataset.json"):
    discover.discover(tmp_path)


# --- the cache ----------------------------------------------------------------------------------
def test_raw_data_is_prepared_once(tmp_path, forbid_preparing):
  root, cache = write_msd(tmp_path / "one" / "liver"), tmp_path / "cache"
  first, = opened(root, cache)
  assert first.root.parent == discover.epath.Path(cache) and first.root.name.startswith("liver-")
  assert len(first.cases) == 2 and first.spacing == (2.0, 1.0, 1.0)
  forbid_preparing()
  assert opened(root, cache) == [first]
  # The same content elsewhere is the same data.
  shutil.copytree(root, tmp_path / "two" / "liver")
  assert opened(tmp_path / "two" / "liver", cache) == [first]


def test_what_is_prepared_follows_the_content(tmp_path):
  root, cache = write_msd(tmp_path / "liver"), tmp_path / "cache"
  first, = opened(root, cache)
  label = np.zeros((6, 7, 8), np.uint8)
  label[1:5] = 1
  write_nifti(root / "labelsTr/1.nii", Volume(label, np.diag([1.0, 1, 2, 1])), label=True)
  second, = opened(root, cache)
  third, = opened(root, cache, (2.0, 2.0, 2.0))
  assert len({first.root, second.root, third.root}) == 3
  assert [a.sha256 == b.sha256 for a, b in zip(first.cases, second.cases, strict=True)] == [
      True, False]
  assert third.spacing == (2.0, 2.0, 2.0)
  # What was prepared before is left as it is: a run that goes on may need it.
  assert Store.open(first.root) == first


def test_a_half_prepared_cache_is_finished(tmp_path):
  root, cache = write_msd(tmp_path / "liver"), tmp_path / "cache"
  first, = opened(root, cache)
  (Path(first.root) / "manifest.json").unlink()
  assert opened(root, cache) == [first]


def test_the_cache_is_the_users_own(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  store, = opened(write_msd(tmp_path / "liver"), None)
  assert Path(store.root).parent == tmp_path / "xdg" / "condseg_jax" / "prepared"


def test_a_dataset_seen_from_inside_has_its_name(tmp_path, monkeypatch):
  root = write_msd(tmp_path / "liver")
  first, = opened(root, tmp_path / "cache")
  monkeypatch.chdir(root)
  assert opened(".", tmp_path / "cache") == [first]


# --- one spacing, one modality ------------------------------------------------------------------
def test_one_spacing_pooled_over_all_folders(tmp_path):
  """The network must not know a dataset by its spacing."""
  write_msd(tmp_path / "data" / "a", 1, (1.0, 1.0, 1.0))
  write_msd(tmp_path / "data" / "b", 2, (2.0, 2.0, 4.0), name="spleen")
  stores = opened(tmp_path / "data", tmp_path / "cache")
  assert [s.spacing for s in stores] == [(4.0, 2.0, 2.0)] * 2
  assert [s.table.names for s in stores] == [("liver",), ("spleen",)]
  assert stores[0].cases[0].shape == (2, 4, 3)  # 8 · 1 / 4, round(7 · 1 / 2), 6 · 1 / 2


def test_raw_data_takes_the_spacing_of_a_store_beside_it(tmp_path):
  write_msd(tmp_path / "raw")
  prepared = made(tmp_path / "raw", tmp_path / "data" / "z", (3.0, 2.0, 2.0))
  write_msd(tmp_path / "data" / "a", name="spleen")
  stores = opened(tmp_path / "data", tmp_path / "cache")
  assert {s.spacing for s in stores} == {(3.0, 2.0, 2.0)} and prepared in stores


def test_stores_of_other_spacing_are_refused_with_the_cure(tmp_path):
  write_msd(tmp_path / "raw")
  for name, spacing in (("a", (2, 1, 1)), ("b", (3, 1, 1))):
    made(tmp_path / "raw", tmp_path / "data" / name, spacing)
  with pytest.raises(InputError, match="with spacing 2,1,1") as caught:
    opened(tmp_path / "data", None)
  assert caught.value.subject.endswith("b")
  with pytest.raises(InputError, match="with spacing 3,1,1") as caught:
    opened(tmp_path / "data", None, (3, 1, 1))
  assert caught.value.subject.endswith("a")
  with pytest.raises(InputError, match="with spacing 2,1"):
    opened(tmp_path / "data", None, (2, 1))
  made(tmp_path / "raw", tmp_path / "near" / "a", (2, 1, 1))
  made(tmp_path / "raw", tmp_path / "near" / "b", (2.0001, 1, 1))
  assert len(opened(tmp_path / "near", None)) == 2


@pytest.mark.parametrize("other", ["mr", "rgb", "prepared mr"])
def test_mixed_modalities_are_refused_before_anything_is_prepared(other, tmp_path):
  write_msd(tmp_path / "data" / "a")
  if other == "rgb":
    write_camvid(tmp_path / "data" / "b")
  elif other == "mr":
    write_msd(tmp_path / "data" / "b", modality="MRI")
  else:
    made(write_msd(tmp_path / "raw", modality="MRI"), tmp_path / "data" / "b")
  with pytest.raises(InputError, match="modality") as caught:
    opened(tmp_path / "data", tmp_path / "cache")
  assert "ct" in str(caught.value) and "one network per modality" in caught.value.cure
  assert not (tmp_path / "cache").exists()


def test_a_prepared_store_of_other_spacing_is_refused_before_anything_is_prepared(tmp_path):
  write_msd(tmp_path / "data" / "a")
  made(tmp_path / "data" / "a", tmp_path / "data" / "b")
  with pytest.raises(InputError, match="with spacing 4,1,1"):
    opened(tmp_path / "data", tmp_path / "cache", (4, 1, 1))
  assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_real_hippocampus(real_data, tmp_path):
  store, = opened(real_data / "hippocampus", tmp_path)
  assert store.modality == "mr" and store.table.names == ("anterior", "posterior")
  np.testing.assert_allclose(store.spacing, (1, 1, 1), rtol=1e-6)
  groups = {}
  for case in store.cases:
    groups.setdefault((case.split, case.dataset, case.annotated), []).append(case)
  assert {key: len(cases) for key, cases in groups.items()} == {
      ("train", "anterior", ("anterior",)): 80, ("train", "posterior", ("posterior",)): 80,
      ("val", "hippocampus", ("anterior", "posterior")): 40}
  assert all(min(case.positives.values()) > 100 for case in store.cases)
  case = store.cases[0]
  assert store.read_image(case).shape == (*case.shape, 1)
