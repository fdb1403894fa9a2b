"""The CamVid layout: frames dealt to classes in blocks; 0 is a class; void says nothing."""

import collections
import json

import numpy as np
import pytest

from condseg_jax.datasets.carve import partial_labels_by_frames
from condseg_jax.datasets.layouts.camvid import matches
from condseg_jax.datasets.layouts.camvid import read_camvid
from condseg_jax.errors import InputError
from condseg_jax.formats.picture import write_png

NAMES = ["sky", "road", "car"]
VOID = 3
LABEL = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4


def write(root, train=13, val=2, label=LABEL, **changes):
  root.mkdir(exist_ok=True)
  tree = {"classes": NAMES, "ignore": VOID} | changes
  (root / "classes.json").write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))
  for split, count in (("train", train), ("val", val)):
    for folder in (split, split + "annot"):
      (root / folder).mkdir(exist_ok=True)
    for i in range(count):
      image = np.full((3, 4, 3), i, np.uint8)
      write_png(root / split / f"{split}_{i:03d}.png", image)
      write_png(root / f"{split}annot" / f"{split}_{i:03d}.png", label)
  return root


def deal(folder):
  return [(c.dataset, c.classes) for c in folder.cases if c.split == "train"]


@pytest.mark.parametrize("block", [1, 2, 3, 6, 20])
def test_blocks_are_dealt_round_robin(block, tmp_path):
  folder = partial_labels_by_frames(read_camvid(write(tmp_path / "x")), block)
  expected = [NAMES[(i // block) % 3] for i in range(13)]
  assert deal(folder) == [(name, (name,)) for name in expected]
  assert [c.id for c in folder.cases][:13] == [f"train_{i:03d}" for i in range(13)]


def test_the_block_is_six_frames(tmp_path):
  folder = partial_labels_by_frames(read_camvid(write(tmp_path / "x")))
  assert [name for name, _ in deal(folder)] == ["sky"] * 6 + ["road"] * 6 + ["car"]


def test_validation_is_annotated_in_full(tmp_path):
  folder = partial_labels_by_frames(read_camvid(write(tmp_path / "x")))
  assert [(c.id, c.dataset, c.classes) for c in folder.cases if c.split == "val"] == [
      (f"val_00{i}", "x", tuple(NAMES)) for i in range(2)]
  assert folder.modality == "rgb" and set(folder.classes) == set(NAMES)


def test_without_blocks_all_is_annotated(tmp_path):
  folder = read_camvid(write(tmp_path / "x"))
  assert deal(folder) == [("x", tuple(NAMES))] * 13
  assert folder.classes == tuple(NAMES)


def test_class_0_is_a_class_and_void_is_unlabelled(tmp_path):
  folder = partial_labels_by_frames(read_camvid(write(tmp_path / "x")))
  cases = {c.id: c for c in folder.cases}
  image, masks = cases["val_001"].read()
  assert (image.array == 1).all() and image.ndim == 2
  expected = [np.where(LABEL == VOID, 255, LABEL == k) for k in range(3)]
  np.testing.assert_array_equal(masks, expected)
  _, masks = cases["train_000"].read()
  np.testing.assert_array_equal(masks, expected[:1])
  _, masks = cases["train_012"].read()
  np.testing.assert_array_equal(masks, expected[2:])


def test_void_may_have_any_value(tmp_path):
  label = np.where(LABEL == VOID, 255, LABEL).astype(np.uint8)
  folder = read_camvid(write(tmp_path / "x", label=label, ignore=255))
  _, masks = folder.cases[0].read()
  np.testing.assert_array_equal(masks[1], np.where(label == 255, 255, label == 1))


def test_names_have_one_spelling(tmp_path):
  raw = read_camvid(write(tmp_path / "x", classes=["Sky", " Road ", "CAR"]))
  folder = partial_labels_by_frames(raw)
  assert set(folder.classes) == set(folder.no_mirror) == set(NAMES)
  assert {name for name, _ in deal(folder)} == set(NAMES)


def test_upside_down_is_no_street(tmp_path):
  assert read_camvid(write(tmp_path / "x")).no_mirror == {name: ("H",) for name in NAMES}


def test_the_layout_is_recognised(tmp_path):
  assert matches(write(tmp_path / "x")) and not matches(tmp_path)
  (tmp_path / "y").mkdir()
  (tmp_path / "y" / "classes.json").touch()
  assert not matches(tmp_path / "y")


def test_the_folder_has_a_name_wherever_it_is_seen_from(tmp_path, monkeypatch):
  monkeypatch.chdir(write(tmp_path / "x"))
  assert read_camvid(".").cases[-1].dataset == "x"


def test_a_missing_label_is_named(tmp_path):
  root = write(tmp_path / "x")
  (root / "trainannot" / "train_004.png").unlink()
  folder = read_camvid(root)
  fault, = folder.faults
  assert fault.subject == str(root / "train" / "train_004.png") and fault.kind == "no_label"
  assert "trainannot" in fault.cure and len(folder.cases) == 14
  for path in root.glob("*annot/*"):
    path.unlink()
  with pytest.raises(InputError, match="no labelled pictures"):
    read_camvid(root)


@pytest.mark.parametrize("changes", [
    {"classes": None}, {"ignore": None}, {"classes": 7}, {"ignore": "void"}, {"ignore": [11]},
    {"classes": "sky"}, {"classes": ["sky", None, "car"]}, {"classes": ["sky", "a\n b", "car"]}])
def test_wrong_classes_json_is_named(changes, tmp_path):
  root = write(tmp_path / "x", **changes)
  with pytest.raises(InputError) as caught:
    read_camvid(root)
  assert caught.value.subject == str(root / "classes.json")


def test_no_pictures(tmp_path):
  (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES, "ignore": VOID}))
  with pytest.raises(InputError, match="no labelled picture"):
    read_camvid(tmp_path)


@pytest.mark.parametrize(("label", "reason"), [
    (LABEL + np.uint8(1), "unknown label value 4"), (LABEL[:2], "shape"),
    (np.zeros((3, 4, 3), np.uint8), "colour")])
def test_a_wrong_label_is_named(label, reason, tmp_path):
  root = write(tmp_path / "x", label=label)
  case = read_camvid(root).cases[0]
  with pytest.raises(InputError, match=reason) as caught:
    case.read()
  assert caught.value.subject == str(root / "trainannot" / "train_000.png")


def test_real_camvid(real_data):
  folder = partial_labels_by_frames(read_camvid(real_data / "camvid"))
  tree = json.loads((real_data / "camvid" / "classes.json").read_text())
  names = tree["classes"]
  assert len({c.id for c in folder.cases}) == 367 + 101
  training = [c for c in folder.cases if c.split == "train"]
  assert sum(c.split == "val" for c in folder.cases) == 101 and len(training) == 367
  assert [c.dataset for c in training] == [names[i // 6 % 11] for i in range(367)]
  frames = collections.Counter(c.dataset for c in training)
  assert set(frames) == set(names) and min(frames.values()) >= 30
  # Every class is seen in frames that annotate it: pieces of an eleventh each leave fence without.
  for name in names:
    masks = [c.read()[1] for c in training if c.dataset == name]
    assert all(m.shape == (1, 180, 240) for m in masks)
    assert any((m == 1).any() for m in masks) and any((m == 255).any() for m in masks)
  image, masks = folder.cases[-1].read()
  assert image.array.shape == (180, 240, 3) and masks.shape == (11, 180, 240)
  assert np.isin((masks == 1).sum(0), (0, 1)).all()
  np.testing.assert_array_equal((masks == 1).sum(0) == 0, (masks == tree["ignore"]).any(0) | (
      masks == 255).all(0))
