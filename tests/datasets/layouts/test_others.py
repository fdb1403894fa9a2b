"""Every other layout, in its real file formats: from files to a prepared store."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from condseg_jax.cli import prepare as command
from condseg_jax.cli import verify as verify_command
from condseg_jax.data.selection import datasets
from condseg_jax.datasets import discover
from condseg_jax.datasets.carve import partial_labels_by_frames
from condseg_jax.datasets.layouts import cityscapes
from condseg_jax.datasets.layouts import FORMATS
from condseg_jax.datasets.layouts.cityscapes import read_cityscapes
from condseg_jax.datasets.layouts.description import read_description
from condseg_jax.datasets.layouts.description import read_known
from condseg_jax.datasets.layouts.folder import read_folder
from condseg_jax.datasets.layouts.known import BTCV
from condseg_jax.datasets.layouts.nnunet import read_nnunet
from condseg_jax.datasets.layouts.totalsegmentator import read_totalsegmentator
from condseg_jax.datasets.prepare import prepare
from condseg_jax.datasets.raw import keep_classes
from condseg_jax.datasets.raw import validated
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import write_nifti
from condseg_jax.formats.picture import write_png
from condseg_jax.geometry import Volume
from support.dicom_files import write_series

SHAPE = (9, 8, 6)  # x y z
AFFINE = np.array([[-0.8, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, -10], [0, 0, 0, 1]])  # L P S


def example(seed=0, values=(1, 2)):
  """Image and label map with a box of each value, in file axis order."""
  label = np.zeros(SHAPE, np.uint8)
  for i, value in enumerate(values):
    label[1 + i % 4 * 2:3 + i % 4 * 2, 2:5, 1 + i // 4:2 + i // 4] = value
  image = np.random.default_rng(seed).integers(-100, 100, SHAPE) + 50 * (label > 0)
  return image.astype(np.int16), label


def canonical(array):
  """From L P S to S P L."""
  return array.transpose(2, 1, 0)


def nifti(path, array, affine=AFFINE, label=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  write_nifti(path, Volume(array, affine), label=label)


def metaimage(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
  lps = np.diag([-1, -1, 1, 1]) @ AFFINE
  image.SetSpacing(np.linalg.norm(lps[:3, :3], axis=0).tolist())
  image.SetOrigin(lps[:3, 3].tolist())
  sitk.WriteImage(image, str(path))


def check(folder, out, expected, *, split="train"):
  """Prepares a folder; the store holds the voxels and masks of {id: (image, {class: mask})}."""
  store = prepare(folder, out, progress=False)
  cases = {case.id: case for case in store.cases}
  assert set(cases) == set(expected)
  for case_id, (image, masks) in expected.items():
    case = cases[case_id]
    assert case.annotated == tuple(masks) and case.split == split
    np.testing.assert_array_equal(store.read_image(case)[..., 0], canonical(image))
    for name, mask in masks.items():
      np.testing.assert_array_equal(store.read_masks(case, [name])[0], canonical(mask))
  return store


# --- nnU-Net ------------------------------------------------------------------------------------
def write_nnunet(root, labels=None, channels=None, ending=".nii.gz", ids="ab"):
  for name in ids:
    image, label = example(ord(name))
    nifti(root / "imagesTr" / f"case_{name}_0000{ending}", image)
    nifti(root / "labelsTr" / f"case_{name}{ending}", label, label=True)
  (root / "dataset.json").write_text(json.dumps({
      "channel_names": channels or {"0": "CT"}, "numTraining": len(ids), "file_ending": ending,
      "labels": labels or {"background": 0, "liver": 1, "spleen": 2}}))
  return root


def test_nnunet(tmp_path):
  root = write_nnunet(tmp_path / "Dataset001_Two")
  folder = read_nnunet(root)
  expected = {}
  for name in "ab":
    image, label = example(ord(name))
    expected[f"case_{name}"] = image, {"liver": label == 1, "spleen": label == 2}
  check(folder, tmp_path / "out", expected)
  assert discover.discover(root) == [folder]


def test_nnunet_regions_ignore_and_test_cases(tmp_path):
  root = write_nnunet(tmp_path / "d", {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
  image, label = example()
  label[0, 0, 0] = 3
  nifti(root / "imagesTs" / "t_0000.nii.gz", image)
  nifti(root / "labelsTs" / "t.nii.gz", label, label=True)
  folder = read_nnunet(root)
  case, = (c for c in folder.cases if c.split == "test")
  _, masks = case.read()
  void = np.where(label == 3, 255, 0)
  np.testing.assert_array_equal(masks, [np.where(label == 3, 255, label > 0),
                                        np.where(void, 255, label == 2)])
  assert folder.classes == ("whole", "core")


@pytest.mark.parametrize("harm", ["channels", "modality", "labels", "ending", "empty"])
def test_nnunet_refused(harm, tmp_path):
  root = write_nnunet(tmp_path / "d")
  tree = json.loads((root / "dataset.json").read_text())
  match harm:
    case "channels":
      tree["channel_names"] = {"0": "T1", "1": "T2"}
    case "modality":
      tree["channel_names"] = {"0": "PET"}
    case "labels":
      tree["labels"] = {"background": 0, "liver": "one"}
    case "ending":
      tree["file_ending"] = 7
    case "empty":
      tree["file_ending"] = ".mha"
  (root / "dataset.json").write_text(json.dumps(tree))
  with pytest.raises(InputError) as caught:
    read_nnunet(root)
  assert str(root) in caught.value.subject and caught.value.cure


def test_nnunet_without_a_label(tmp_path):
  root = write_nnunet(tmp_path / "d")
  (root / "labelsTr" / "case_a.nii.gz").unlink()
  folder = read_nnunet(root)
  assert [c.id for c in folder.cases] == ["case_b"]
  with pytest.raises(InputError, match="case_a_0000.nii.gz: has no label"):
    prepare(folder, tmp_path / "out", progress=False)
  with pytest.raises(InputError, match="no label"):  # nor does training pass it over
    discover.open_stores(root, cache=tmp_path / "cache", progress=False)


# --- the public datasets that are described -----------------------------------------------------
def test_sliver07(tmp_path):
  expected = {}
  for number in ("001", "002"):
    image, label = example(int(number), (1,))
    metaimage(tmp_path / "raw" / "scan" / f"liver-orig{number}.mhd", image)
    metaimage(tmp_path / "raw" / "label" / f"liver-seg{number}.mhd", label)
    expected[number] = image, {"liver": label == 1}
  store = check(read_known("sliver07", tmp_path / "raw"), tmp_path / "out", expected)
  np.testing.assert_allclose(store.spacing, (2.5, 0.8, 0.8), atol=1e-6)


def test_nih_pancreas_with_flipped_labels(tmp_path):
  """DICOM slices; labels as NIfTI along R A S, which agree by geometry alone."""
  expected = {}
  for number in ("0001", "0002"):
    image, label = example(int(number), (1,))
    write_series(tmp_path / "raw" / "Pancreas-CT" / f"PANCREAS_{number}" / "study" / "series",
                 image, AFFINE, order=[4, 2, 0, 5, 1, 3])
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(label, AFFINE))
    assert (np.asarray(turned.dataobj) != label).any()
    nifti(tmp_path / "raw" / "labels" / f"label{number}.nii.gz",
          np.asarray(turned.dataobj).astype(np.uint8), turned.affine, label=True)
    expected[number] = image, {"pancreas": label == 1}
  (tmp_path / "raw" / "PANCREAS_0003").mkdir()  # without a label
  check(read_known("nih_pancreas", tmp_path / "raw"), tmp_path / "out", expected)


def test_btcv(tmp_path):
  values = tuple(range(1, 14))
  image, label = example(0, values)
  nifti(tmp_path / "raw/RawData/Training/img/img0001.nii.gz", image)
  nifti(tmp_path / "raw/RawData/Training/label/label0001.nii.gz", label, label=True)
  nifti(tmp_path / "raw/RawData/Testing/img/img0061.nii.gz", image)
  folder = read_known("btcv", tmp_path / "raw")
  masks = {name: label == value for value, name in enumerate(BTCV, 1)}
  store = check(folder, tmp_path / "out", {"0001": (image, masks)})
  sides = {c.name for c in store.table.classes if c.no_mirror == ("W",)}
  assert sides == {name for name in BTCV if "left" in name or "right" in name} and len(sides) == 4
  one = keep_classes(folder, ["Pancreas"])
  check(one, tmp_path / "one", {"0001": (image, {"pancreas": label == 11})})


# --- TotalSegmentator ---------------------------------------------------------------------------
def write_totalsegmentator(root, image_name="ct.nii.gz"):
  for i, name in enumerate(("s0000", "s0001", "s0002")):
    image, label = example(i)
    nifti(root / name / image_name, image)
    for value, organ in enumerate(("kidney_left", "liver"), 1):
      nifti(root / name / "segmentations" / f"{organ}.nii.gz", (label == value).astype(np.uint8),
            label=True)
  return root


def test_totalsegmentator(tmp_path):
  root = write_totalsegmentator(tmp_path / "raw")
  expected = {}
  for i in range(3):
    image, label = example(i)
    expected[f"s000{i}"] = image, {"kidney_left": label == 1, "liver": label == 2}
  folder = read_totalsegmentator(root)
  store = check(folder, tmp_path / "out", expected)
  assert dict(zip(store.table.names, (c.no_mirror for c in store.table.classes), strict=True)) == {
      "kidney_left": ("W",), "liver": ()}
  assert discover.discover(root) == [folder]
  # Masks of classes that are not wanted are not even opened.
  for path in root.glob("*/segmentations/kidney_left.nii.gz"):
    path.write_bytes(b"")
  kept = {i: (image, {"liver": masks["liver"]}) for i, (image, masks) in expected.items()}
  check(keep_classes(folder, ["liver"]), tmp_path / "one", kept)


def test_totalsegmentator_splits(tmp_path):
  root = write_totalsegmentator(tmp_path / "raw", "mri.nii.gz")
  (root / "meta.csv").write_text("\ufeffimage_id;age;split\ns0000;50;train\ns0001;60;val\n"
                                 "s0002;70;test\n", encoding="utf-8")
  folder = read_totalsegmentator(root)
  assert folder.modality == "mr"
  assert [c.split for c in folder.cases] == ["train", "val", "test"]
  (root / "meta.csv").write_text("image_id;split\ns0000;training\n")
  with pytest.raises(InputError, match="'training' of s0000"):
    read_totalsegmentator(root)


def test_totalsegmentator_refused(tmp_path):
  root = write_totalsegmentator(tmp_path / "raw")
  (root / "s0001" / "ct.nii.gz").rename(root / "s0001" / "mri.nii.gz")
  with pytest.raises(InputError, match="both CT and MR"):
    read_totalsegmentator(root)
  (root / "s0001" / "mri.nii.gz").unlink()
  folder = read_totalsegmentator(root)
  assert [f.kind for f in folder.faults] == ["no_image"] and len(folder.cases) == 2
  with pytest.raises(InputError, match="no image") as caught:
    prepare(folder, tmp_path / "out", progress=False)
  assert caught.value.subject == str(root / "s0001") and not (tmp_path / "out").exists()
  with pytest.raises(InputError, match="contains no case"):
    read_totalsegmentator(tmp_path)


# --- Cityscapes ---------------------------------------------------------------------------------
def write_cityscapes(root, frames=5, ending="_gtFine_labelIds.png"):
  """Two cities for training, one for validation; road, sky and car, and a void id."""
  values = (7, 23, 26, 3) if "labelIds" in ending else (0, 10, 13, 255)
  label = np.array(values, np.uint8)[np.arange(48).reshape(6, 8) % 4]
  for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm")):
    for i in range(frames):
      name = f"{city}_{i:06d}_000019"
      for folder, end, array in (("leftImg8bit", "_leftImg8bit.png",
                                  np.full((6, 8, 3), i, np.uint8)), ("gtFine", ending, label)):
        path = root / folder / split / city / (name + end)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, array)
  return root, label, values


@pytest.mark.parametrize("ending", list(cityscapes.ANNOTATIONS))
def test_cityscapes(ending, tmp_path):
  root, label, values = write_cityscapes(tmp_path / "raw", ending=ending)
  folder = read_cityscapes(root)
  assert folder.modality == "rgb" and len(folder.classes) == 19
  assert [c.group for c in folder.cases if c.split == "train"] == ["aachen"] * 5 + ["bonn"] * 5
  _, masks = folder.cases[0].read()
  for name, value in (("road", values[0]), ("sky", values[1]), ("car", values[2])):
    expected = np.where(label == values[3], 255, label == value)
    np.testing.assert_array_equal(masks[folder.classes.index(name)], expected)
  assert folder.no_mirror["road"] == ("H",)


def test_cityscapes_as_single_class_datasets(tmp_path):
  """Any subset of the classes; blocks of frames in turn, each city going on where one ended."""
  root, _, _ = write_cityscapes(tmp_path / "raw")
  folder = partial_labels_by_frames(keep_classes(read_cityscapes(root), ["car", "sky"]), 2)
  turns = [c.dataset for c in folder.cases if c.split == "train"]
  assert turns == ["car", "car", "sky", "sky", "car", "sky", "sky", "car", "car", "sky"]
  store = prepare(folder, tmp_path / "out", progress=False)
  assert store.provenance == {"keep": ["car", "sky"], "carve": {"by": "frames", "block": 2}}
  assert {c.annotated for c in store.cases if c.split == "train"} == {("car",), ("sky",)}
  assert {c.annotated for c in store.cases if c.split == "val"} == {("car", "sky")}


def test_a_class_left_without_a_positive_is_an_error(tmp_path):
  root, _, _ = write_cityscapes(tmp_path / "raw")
  folder = partial_labels_by_frames(keep_classes(read_cityscapes(root), ["car", "bus"]), 2)
  with pytest.raises(InputError, match="'bus' has no positive voxel in the 5 training cases"):
    prepare(folder, tmp_path / "out", progress=False)


def test_cityscapes_refused(tmp_path):
  root, _, _ = write_cityscapes(tmp_path / "raw")
  next((root / "gtFine" / "train" / "bonn").glob("*")).unlink()
  folder = read_cityscapes(root)
  assert [f.kind for f in folder.faults] == ["no_label"] and len(folder.cases) == 14
  with pytest.raises(InputError, match="no labelled frames"):
    read_cityscapes(tmp_path)


# --- folder -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["one class", "classes.json", "masks per class"])
def test_folder(kind, tmp_path):
  root, expected = tmp_path / "Liver", {}
  for name in ("p1", "p2"):
    image, label = example(ord(name[1]), (1,) if kind == "one class" else (1, 2))
    metaimage(root / "images" / f"{name}.mha", image)
    masks = {"liver": label == 1}
    if kind == "masks per class":
      masks["spleen"] = label == 2
      for organ, mask in masks.items():
        nifti(root / "masks" / organ / f"{name}.nii.gz", mask.astype(np.uint8), label=True)
    else:
      if kind == "classes.json":
        masks["spleen"] = label == 2
      nifti(root / "masks" / f"{name}.nii.gz", label, label=True)
    expected[name] = image, masks
  if kind == "classes.json":
    (root / "classes.json").write_text(json.dumps({"liver": 1, "spleen": 2}))
  check(read_folder(root, "ct"), tmp_path / "out", expected)


def test_folder_of_pictures(tmp_path):
  root = tmp_path / "car"
  for folder in ("images", "masks"):
    (root / folder).mkdir(parents=True)
  write_png(root / "images" / "a.png", np.zeros((4, 5, 3), np.uint8))
  write_png(root / "masks" / "a.png", np.eye(4, 5, dtype=np.uint8) * 255)
  (root / "classes.json").write_text(json.dumps({"car": 255}))
  folder = read_folder(root)
  assert folder.modality == "rgb" and folder.classes == ("car",)
  np.testing.assert_array_equal(folder.cases[0].read()[1][0], np.eye(4, 5))


def test_folder_refused(tmp_path):
  root = tmp_path / "liver"
  with pytest.raises(InputError, match="no folder images"):
    read_folder(root)
  image, label = example()
  nifti(root / "images" / "a.nii", image)
  (root / "masks").mkdir()
  with pytest.raises(InputError, match="unknown modality") as caught:
    read_folder(root)
  assert caught.value.usage and "`modality`" in caught.value.cure
  with pytest.raises(InputError, match="no image with a mask"):
    read_folder(root, "ct")
  nifti(root / "masks" / "a.nii", label, label=True)
  nifti(root / "images" / "a.nii.gz", image)
  with pytest.raises(InputError, match="same id 'a'"):
    read_folder(root, "ct")


def test_folder_of_images_without_masks(tmp_path):
  """Those that have no mask; where there are no masks at all, all of them."""
  root = tmp_path / "scans"
  for name in ("p1_1", "p1_2", "p2_1"):
    nifti(root / "images" / f"{name}.nii.gz", example()[0])
  folder = read_folder(root, "ct", unlabelled=True)
  assert folder.classes == () and [c.group for c in folder.cases] == ["p1", "p1", "p2"]
  assert folder.cases[0].read()[1].shape == (0, *folder.cases[0].read()[0].array.shape)
  nifti(root / "masks" / "p1_2.nii.gz", example(0, (1,))[1], label=True)
  assert [c.id for c in read_folder(root, "ct", unlabelled=True).cases] == ["p1_1", "p2_1"]
  for name in ("p1_1", "p2_1"):
    nifti(root / "masks" / f"{name}.nii.gz", example(0, (1,))[1], label=True)
  with pytest.raises(InputError, match="no image without a mask") as caught:
    read_folder(root, "ct", unlabelled=True)
  assert caught.value.usage


def test_masks_and_images_without_the_other(tmp_path):
  root = tmp_path / "d"
  image, label = example(0, (1,))
  for name in "ab":
    nifti(root / "images" / f"{name}.nii", image)
  for name in "bc":
    nifti(root / "masks" / "liver" / f"{name}.nii", label, label=True)
  (root / "masks" / "heart").mkdir()
  folder = read_folder(root, "ct")
  assert [c.id for c in folder.cases] == ["b"]
  assert sorted(f.kind for f in folder.faults) == ["class_nowhere", "no_image", "no_label"]
  with pytest.raises(InputError):
    prepare(folder, tmp_path / "out", progress=False)


def test_cases_that_annotate_different_classes_are_datasets_of_their_own(tmp_path):
  """One folder may hold the single-class setting: a mask here, another there."""
  root, expected = tmp_path / "d", {}
  for name, organs in (("a", ["liver"]), ("b", ["spleen"]), ("c", ["liver"])):
    image, label = example(ord(name))
    nifti(root / "images" / f"{name}.nii", image)
    for organ in organs:
      mask = label == (1 if organ == "liver" else 2)
      nifti(root / "masks" / organ / f"{name}.nii", mask.astype(np.uint8), label=True)
      expected[name] = image, {organ: mask}
  folder = read_folder(root, "ct")
  store = check(folder, tmp_path / "out", expected)
  assert [(d.name, d.annotated, len(d.cases)) for d in datasets([store])] == [
      ("d 1", ("liver",), 2), ("d 2", ("spleen",), 1)]
  kept = validated(keep_classes(folder, ["liver"]))
  assert {c.dataset for c in kept.cases} == {"d"}
  assert validated(validated(folder)) == validated(folder)


# --- descriptions -------------------------------------------------------------------------------
YAML = """
modality: mr
images: "scans/{id}/t1.nii.gz"
labels: "masks/{id}_seg.nii"
classes: {1: left kidney, 2: left kidney, 3: spleen}
annotated: [left kidney]
void: [9]
splits: {train: ["p*"], val: [q1]}
patient: "^([a-z])"
no_mirror: {left kidney: [W, H]}
"""


def write_described(root, text=YAML, name="mine.yaml"):
  for case_id in ("p1", "p2", "q1", "r1"):
    image, label = example(ord(case_id[1]), (1, 2, 3))
    label[0, 0, 0] = 9
    nifti(root / "scans" / case_id / "t1.nii.gz", image)
    nifti(root / "masks" / f"{case_id}_seg.nii", label, label=True)
  (root / name).write_text(text)
  return root / name


@pytest.mark.parametrize("kind", ["yaml", "py"])
def test_a_description(kind, tmp_path):
  import yaml
  path = write_described(tmp_path)
  if kind == "py":
    path = tmp_path / "mine.py"
    path.write_text(f"def get_description():\n  return {yaml.safe_load(YAML)!r}\n")
  folder = read_description(path)
  assert [(c.id, c.split, c.group) for c in folder.cases] == [
      ("p1", "train", "p"), ("p2", "train", "p"), ("q1", "val", "q")]
  assert {c.dataset for c in folder.cases} == {"mine"}
  assert folder.modality == "mr" and folder.no_mirror == {"left kidney": ("W", "H")}
  image, masks = folder.cases[0].read()
  expected, label = example(ord("1"), (1, 2, 3))
  np.testing.assert_array_equal(image.array, expected)
  mask = np.isin(label, (1, 2)).astype(np.uint8)
  mask[0, 0, 0] = 255
  np.testing.assert_array_equal(masks, [mask])
  store = prepare(folder, tmp_path / "out", progress=False)
  assert store.table.classes[0].no_mirror == ("W", "H")


def test_values_that_are_unlabelled_for_one_class_alone(tmp_path):
  """Half of what may be spleen is certainly no kidney."""
  text = YAML.replace("annotated: [left kidney]", "void_for: {Spleen: [2]}")
  _, (kidney, spleen) = read_description(write_described(tmp_path, text)).cases[0].read()
  label = example(ord("1"), (1, 2, 3))[1]
  label[0, 0, 0] = 9
  void = np.where(label == 9, 255, 0)
  np.testing.assert_array_equal(kidney, np.where(void, 255, np.isin(label, (1, 2))))
  np.testing.assert_array_equal(spleen, np.where(void | (label == 2), 255, label == 3))


def test_a_description_of_masks_and_series(tmp_path):
  image, label = example(0, (1,))
  for uid, offset in (("1.2.1", 0), ("1.2.2", 7)):
    write_series(tmp_path / "a" / uid, image + offset, AFFINE, uid=uid)
  nifti(tmp_path / "a_liver.nii", label, label=True)
  (tmp_path / "m.yml").write_text(
      'modality: ct\nimages: "{id}"\nlabels: {Liver: "{id}_liver.nii"}\nseries: {a: 1.2.2}\n'
      "unlabelled: skip\n")
  check(read_description(tmp_path / "m.yml"), tmp_path / "out",
        {"a": (image + 7, {"liver": label == 1})})


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("modality: mr", "modality: pet", "modality 'pet'"),
    ("modality: mr", "", "'modality' is missing"),
    ("void:", "viod:", "unknown key 'viod'"), ("{id}/t1", "p1/t1", "has no {id}"),
    ("classes: {1: left kidney, 2: left kidney, 3: spleen}", "", "'classes' is missing"),
    ("annotated: [left kidney]", "annotated: [heart]", "'heart'"), ("_seg", "_mask", "no label"),
    ("{train:", "{training:", "unknown split 'training'"), ("[q1]", '["p1"]', "in several splits"),
    ('"^([a-z])"', '"["', "not a valid regular expression"), ('"^([a-z])"', '"p"', "has no group"),
    ("{1: left kidney,", "{x: left kidney,", "\"classes\": 'x' is not a label value"),
    ("{1: left kidney,", "{1: null,", "class name None is not a text"),
    ("{1: left kidney,", r'{1: "a\tb",', "control characters"),
    ("[9]", "[x]", "\"void\": 'x' is not a label value"), ("[q1]", "5", "5 is not a list of ids"),
    ("[W, H]", "5", "no_mirror: left kidney: 5 is not a list of axes"),
    ("[W, H]", "[X]", "is not a list of axes"), ("{left kidney: [W", "{heart: [W", "'heart'"),
    ("modality: mr", "modality: [mr]", "'modality' must be a text"),
    ("modality: mr", "modality: mr\n5: 6", "unknown key '5'"),
    ("modality: mr", "modality: mr\nroot: 5", "'root' must be a text"),
    ("modality: mr", "modality: mr\nunlabelled: drop", "'drop' is not known"),
    ('"^([a-z])"', "5", "5 is not a regular expression"),
    ("modality: mr", "modality: 2001-99-99", "not valid YAML"),
    ("modality: mr", "modality: " + 3_000 * "[", "nested too deeply"),
    ("[9]", "[9]\nvoid_for: {heart: [5]}", "void_for: class 'heart' is not in classes"),
    ("[9]", "[9]\nvoid_for: {spleen: 5}", "void_for: spleen: 5 is not a list"),
    ("[9]", "[9]\nvoid_for: [5]", "'void_for' must be a mapping"),
    ("[9]", "9", "'void' must be a list"), ("modality: mr", "modality: [", "not valid YAML"),
    ("scans/{id}/t1", "scan/{id}/t1", "no labelled case"),
    ('"scans/{id}/t1.nii.gz"', '"scans/{id}*/t1.nii.gz"', "the same id 'p'"),
    ('"scans/{id}/t1.nii.gz"', '"**/{id}*.nii*"', "the same id"),
])
def test_wrong_descriptions(old, new, reason, tmp_path):
  assert old in YAML
  path = write_described(tmp_path, YAML.replace(old, new))
  with pytest.raises(InputError) as caught:
    read_description(path)
  assert reason in str(caught.value) and caught.value.cure and "\n" not in str(caught.value)


def test_a_pattern_of_masks_that_finds_nothing_is_a_fault(tmp_path):
  image, label = example(0, (1,))
  nifti(tmp_path / "a.nii", image)
  nifti(tmp_path / "a_liver.nii", label, label=True)
  text = ('modality: ct\nimages: "{id}.nii"\n'
          'labels: {liver: "{id}_liver.nii", heart: "{id}_heart.nii"}\n')
  (tmp_path / "m.yaml").write_text(text + "unlabelled: skip\n")
  fault, = read_description(tmp_path / "m.yaml").faults
  assert fault.kind == "class_nowhere" and "'heart'" in fault.reason
  (tmp_path / "m.yaml").write_text(text + "unlabelled: skip\nannotated: [liver, hart]\n")
  with pytest.raises(InputError, match="'hart' has no masks"):
    read_description(tmp_path / "m.yaml")


def test_files_that_are_no_description(tmp_path):
  (tmp_path / "a.py").write_text("raise OSError('no')")
  (tmp_path / "b.yaml").write_text("- 1")
  for name, reason in (("a.py", "cannot be run"), ("b.yaml", "does not describe"),
                     ("c.yaml", "does not exist"), ("d.txt", "is not a description")):
    with pytest.raises(InputError, match=reason):
      read_description(tmp_path / name)


# --- the command --------------------------------------------------------------------------------
@pytest.mark.parametrize("main", [command.main, verify_command.main])
def test_the_commands_list_every_layout(main, capsys):
  assert main(["command", "--help"]) == 0
  assert "<" in (text := "".join(capsys.readouterr().out.split())) and "|".join(FORMATS) in text


@pytest.mark.parametrize("name", FORMATS)
def test_every_layout_has_a_reader_and_refuses_an_empty_folder(name, tmp_path):
  assert not FORMATS[name].matches(tmp_path)
  with pytest.raises(InputError):
    discover.reader(name)(tmp_path)


def test_the_command_prepares_carves_and_damages(tmp_path, capsys):
  root = write_nnunet(tmp_path / "d", ids="abcdef")
  common = ["condseg-prepare", "--format=nnunet", f"--source={root}"]
  assert command.main([*common, f"--out={tmp_path / 'o'}", "--carve=cases", "--folds=3", "--fold=1",
                       "--seed=5", "--damage=parts,boundary", "--rate=0.5"]) == 0
  store = discover.discover(tmp_path / "o")[0]
  assert sorted(c.split for c in store.cases) == ["train"] * 4 + ["val"] * 2
  assert store.provenance == {
      "folds": {"folds": 3, "fold": 1, "seed": 5}, "carve": {"by": "cases", "seed": 5},
      "alterations": [{"name": "Damage", "kind": "parts", "rate": 0.5, "seed": 5},
                      {"name": "Damage", "kind": "boundary", "rate": 0.5, "seed": 5}]}
  assert json.loads((tmp_path / "o" / "manifest.json").read_text())["recipe"] == store.provenance
  whole = {c.id: c.positives for c in prepare(read_nnunet(root), tmp_path / "w",
                                              progress=False).cases}
  for case in store.cases:
    changed = any(case.positives[n] != whole[case.id][n] for n in case.annotated)
    assert changed == (case.split == "train")

  assert command.main([*common, f"--out={tmp_path / 'o'}"]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.endswith("(choose another --out, or replace the store with --overwrite)")
  assert "alterations [" in line and "instead of none" in line
  assert discover.discover(tmp_path / "o") == [store]
  assert command.main([*common, f"--out={tmp_path / 'o'}", "--overwrite"]) == 0
  assert discover.discover(tmp_path / "o")[0].provenance == {}
  assert command.main([*common, f"--out={tmp_path / 'o'}"]) == 0  # the same settings

  assert command.main([*common, f"--out={tmp_path / 's'}", "--scribbles=1"]) == 0
  for case in (store := discover.discover(tmp_path / "s")[0]).cases:
    masks = store.read_masks(case, case.annotated)
    assert (masks == 255).mean() > 0.3 and 0 < case.positives["liver"] <= whole[case.id]["liver"]


@pytest.mark.parametrize(("flags", "reason"), [
    (["--damage=noise"], "--damage: unknown corruption 'noise'"),
    (["--damage=parts", "--rate=2"], "--rate: must be in [0, 1], not 2"),
    (["--scribbles=3"], "--scribbles: must be in (0, 1], not 3"),
    (["--folds=9"], "2 patients for 9 folds"),
    (["--folds=2", "--fold=2"], "--fold: must be in [0, 1], not 2"),
    (["--carve=frames", "--block=0"], "--block: must be at least 1"),
    (["--keep=heart"], "'heart'"), (["--spacing=a"], "--spacing"),
    (["--spacing=1,0,1"], "--spacing: must be numbers in [0.0001, 1000], not 1,0,1")])
def test_wrong_usage_of_the_command(flags, reason, tmp_path, capsys):
  root = write_nnunet(tmp_path / "d")
  assert command.main(["condseg-prepare", "--format=nnunet", f"--source={root}",
                       f"--out={tmp_path / 'o'}", *flags]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and reason in lines[0]
