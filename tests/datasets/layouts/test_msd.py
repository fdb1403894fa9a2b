"""The MSD layout: who annotates what, and every way in which a folder can be wrong."""

import json

import numpy as np
import pytest

from condseg_jax.datasets.layouts.msd import matches
from condseg_jax.datasets.layouts.msd import read_msd
from condseg_jax.datasets.raw import keep_classes
from condseg_jax.errors import InputError

LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


def describe(root, ids=("a", "b", "c", "d"), splits=None, **changes):
  """A folder's descriptions; the importer reads no image."""
  root.mkdir(exist_ok=True)
  training = [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in ids]
  tree = {"modality": {"0": "MRI"}, "labels": LABELS, "training": training} | changes
  tree = {key: value for key, value in tree.items() if value is not None}
  (root / "dataset.json").write_text(json.dumps(tree))
  if splits is not None:
    (root / "splits.json").write_text(json.dumps(splits))
  return root


def summary(folder):
  return [(c.id, c.dataset, c.split, c.classes) for c in folder.cases]


def test_without_splits_all_is_training(tmp_path):
  root = describe(tmp_path / "Task04")
  assert matches(root) and not matches(tmp_path)
  folder = read_msd(root)
  both = ("anterior", "posterior")
  assert summary(folder) == [(i, "Task04", "train", both) for i in "abcd"]
  assert folder.classes == both and folder.modality == "mr" and not folder.no_mirror
  assert folder.cases[0].image == root / "imagesTr/a.nii.gz"
  assert folder.cases[0].labels[0].path == root / "labelsTr/a.nii.gz"


def test_the_folder_has_a_name_wherever_it_is_seen_from(tmp_path, monkeypatch):
  root = describe(tmp_path / "Task04")
  (root / "inner").mkdir()
  monkeypatch.chdir(root)
  assert summary(read_msd(".")) == summary(read_msd("inner/..")) == summary(read_msd(root))
  assert read_msd(".").root == root


def test_splits_as_lists(tmp_path):
  folder = read_msd(describe(tmp_path / "x", splits={"train": ["c", "a"], "val": ["b"]}))
  both = ("anterior", "posterior")
  assert summary(folder) == [("c", "x", "train", both), ("a", "x", "train", both),
                             ("b", "x", "val", both)]


def test_splits_per_class(tmp_path):
  """train.anterior annotates anterior only: nothing is said of posterior there."""
  splits = {"train": {"Anterior": ["a", "b"], "posterior": ["c"]}, "val": ["d"]}
  folder = read_msd(describe(tmp_path / "x", splits=splits))
  assert summary(folder) == [
      ("a", "anterior", "train", ("anterior",)), ("b", "anterior", "train", ("anterior",)),
      ("c", "posterior", "train", ("posterior",)), ("d", "x", "val", ("anterior", "posterior"))]
  label = np.array([0, 1, 2])
  masks = {c.id: c.labels[0].annotation.masks(label).tolist() for c in folder.cases}
  assert masks == {"a": [[0, 1, 0]], "b": [[0, 1, 0]], "c": [[0, 0, 1]],
                   "d": [[0, 1, 0], [0, 0, 1]]}


@pytest.mark.parametrize("keep", [["Anterior"], ["anterior"], [" ANTERIOR "]])
def test_keep_carves_a_single_class(keep, tmp_path):
  folder = keep_classes(read_msd(describe(tmp_path / "x")), keep)
  assert summary(folder) == [(i, "x", "train", ("anterior",)) for i in "abcd"]
  # The value of a class not kept is known, and a negative of the kept one.
  assert folder.cases[0].labels[0].annotation.masks(np.array([0, 1, 2])).tolist() == [[0, 1, 0]]


def test_keep_with_splits(tmp_path):
  splits = {"train": {"anterior": ["a", "b"], "posterior": ["c"]}, "val": ["d"]}
  folder = keep_classes(read_msd(describe(tmp_path / "x", splits=splits)), ["Posterior"])
  assert summary(folder) == [("c", "posterior", "train", ("posterior",)),
                             ("d", "x", "val", ("posterior",))]
  splits = {"train": ["a", "b"], "val": ["d"]}
  folder = keep_classes(read_msd(describe(tmp_path / "x", splits=splits)), ["Posterior"])
  assert {c.classes for c in folder.cases} == {("posterior",)}


def test_keep_of_an_unknown_class(tmp_path):
  with pytest.raises(InputError, match="liver.*anterior, posterior"):
    keep_classes(read_msd(describe(tmp_path / "x")), ["liver"])


@pytest.mark.parametrize("labels", [
    {"background": 0, "Anterior": 1, "Posterior": 2},
    {"Posterior": "2", "Anterior": "1"},
    {"1": "anterior", "2": "posterior"}])
def test_labels_in_either_direction(labels, tmp_path):
  folder = read_msd(describe(tmp_path / "x", labels=labels))
  assert folder.classes == ("anterior", "posterior")
  masks = folder.cases[0].labels[0].annotation.masks(np.array([0, 1, 2]))
  assert masks.tolist() == [[0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("labels", [
    {"background": 0, "liver": 1, "ignore": 2}, {"0": "background", "1": "liver", "2": "Ignore"}])
def test_a_label_called_ignore_is_unlabelled(labels, tmp_path):
  folder = read_msd(describe(tmp_path / "x", labels=labels))
  assert folder.classes == ("liver",)
  assert folder.cases[0].labels[0].annotation.masks(np.array([0, 1, 2])).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(("channels", "modality"), [
    ({"modality": {"0": "CT"}}, "ct"), ({"modality": {"0": "MRI"}}, "mr"),
    ({"modality": {"0": " t1 "}}, "mr"), ({"modality": None, "channel_names": {"0": "CT"}}, "ct")])
def test_modalities(channels, modality, tmp_path):
  assert read_msd(describe(tmp_path / "x", **channels)).modality == modality


@pytest.mark.parametrize(("changes", "reason"), [
    ({"modality": {"0": "T2", "1": "ADC"}}, "2 channels"),
    ({"modality": None}, "0 channels"),
    ({"modality": "CT"}, "modality 'CT'"),
    ({"modality": {"0": "sonar"}}, "unknown modality 'sonar'"),
    ({"labels": None}, "labels"),
    ({"labels": {}}, "labels"),
    ({"labels": ["background", "liver"]}, "labels"),
    ({"labels": {"background": 0, "whole": [1, 2]}}, "labels"),
    ({"labels": {"background": 0, "liver": 1.5}}, '"labels": 1.5 is not a label value'),
    ({"labels": {"background": 0, "liver": float("inf")}}, '"labels": inf is not a label value'),
    ({"labels": {"background": 0, "liver": True}}, '"labels": True is not a label value'),
    ({"labels": {"0": "background", "1": None}}, "class name None is not a text"),
    ({"labels": {"0": "background", "1": " "}}, "class name ' ' is empty"),
    ({"labels": {"0": "background", "1": "a\udce9"}}, "class name .* invalid Unicode"),
    ({"labels": {"0": "background", "1": "../a"}}, r"class name '\.\./a' is a path"),
    ({"labels": {"0": "background", "1": 5000 * "a"}}, "has 5000 characters"),
    ({"training": []}, "no training case"),
    ({"training": None}, "no training case"),
    ({"training": [{"image": "a.nii.gz"}]}, "training"),
    ({"training": ["a.nii.gz"]}, "training"),
    ({"training": 5}, "no training case"),
    ({"training": {"image": "a.nii.gz"}}, "no training case"),
    ({"training": [{"image": 5, "label": "l.nii.gz"}]}, '"image" in entry 1 of "training"'),
    ({"training": [{"image": "a\0.nii", "label": "l.nii.gz"}]}, '"image" in entry 1'),
    ({"training": [{"image": "a.nii", "label": "\ud800.nii"}]}, '"label" in entry 1'),
    ({"training": [{"image": "/etc/a.nii", "label": "l.nii"}]}, "outside of the dataset: /etc/a.n"),
    ({"training": [{"image": "a.nii", "label": "../x2/l.nii"}]}, "outside of the dataset"),
    ({"training": [{"image": "a/../../../b.nii", "label": "l.nii"}]}, "outside of the dataset"),
    ({"patient": 5}, '"patient": 5 is not a regular expression'),
    ({"patient": "["}, "not a valid regular expression"),
    ({"patient": "a"}, "has no group"),
    ({"training": [{"image": f"{d}/a.nii.gz", "label": "l.nii.gz"} for d in "xy"]}, "same name")])
def test_a_wrong_description_is_named(changes, reason, tmp_path):
  root = describe(tmp_path / "x", **changes)
  with pytest.raises(InputError, match=reason) as caught:
    read_msd(root)
  assert caught.value.subject == str(root / "dataset.json") and caught.value.cure


@pytest.mark.parametrize(("splits", "reason"), [
    ({"train": ["a", "nobody"]}, "'nobody' is not in dataset.json"),
    ({"train": {"anterior": ["nobody"]}}, "'nobody' is not in dataset.json"),
    ({"train": ["a", "b"], "val": ["b"]}, "'b' is in two groups"),
    ({"train": {"anterior": ["a"], "posterior": ["a"]}}, "'a' is in two groups"),
    ({"train": {"anterior": ["a"], "liver": ["b"]}}, "'liver' is not a label"),
    ({"train": [], "val": []}, "contains no case"),
    ({"fold": ["a"]}, "contains no case"),
    ({"train": 5}, '"train": 5 is not a list of case ids'),
    ({"train": ["a", 5]}, "is not a list of case ids"),
    ({"train": {"anterior": "a"}}, "'a' is not a list of case ids"),
    ([{"train": ["a"]}], "not a JSON object")])
def test_a_wrong_split_is_named(splits, reason, tmp_path):
  root = describe(tmp_path / "x", splits=splits)
  with pytest.raises(InputError, match=reason) as caught:
    read_msd(root)
  assert caught.value.subject == str(root / "splits.json") and not caught.value.usage


def test_files_may_be_links_to_elsewhere_or_named_in_full(tmp_path):
  root = describe(tmp_path / "x", training=[
      {"image": "./link/../a.nii", "label": str(tmp_path / "x" / "l.nii")}])
  (tmp_path / "real.nii").touch()
  (root / "a.nii").symlink_to(tmp_path / "real.nii")
  case, = read_msd(root).cases
  assert case.image == root / "a.nii" and case.labels[0].path == root / "l.nii"


def test_the_patient_is_declared(tmp_path):
  ids = ("brats20_training_001", "brats20_training_002")
  guessed = read_msd(describe(tmp_path / "x", ids))
  assert {case.group for case in guessed.cases} == {"brats20"}
  declared = read_msd(describe(tmp_path / "x", ids, patient="^(.*)$"))
  assert [case.group for case in declared.cases] == list(ids)


@pytest.mark.parametrize("text", ["{", "[]", "", "7", "[" * 100_000, '{"a": ' * 100_000])
def test_json_that_is_none(text, tmp_path):
  (tmp_path / "dataset.json").write_text(text)
  with pytest.raises(InputError, match="JSON"):
    read_msd(tmp_path)


def test_no_folder(tmp_path):
  with pytest.raises(InputError, match="dataset.json"):
    read_msd(tmp_path / "nowhere")


def test_digest_follows_content_and_annotation(tmp_path):
  splits = {"train": {"anterior": ["a", "b"], "posterior": ["c"]}, "val": ["d"]}

  def digests(root, keep=(), **changes):
    describe(root, **changes)
    for folder in ("imagesTr", "labelsTr"):
      (root / folder).mkdir(parents=True, exist_ok=True)
      for i in "abcd":
        (root / folder / f"{i}.nii.gz").write_text(folder + i)
    return {c.id: c.digest() for c in keep_classes(read_msd(root), keep).cases}

  for parent in ("one", "two"):
    (tmp_path / parent).mkdir()
  plain = digests(tmp_path / "one" / "x")
  assert digests(tmp_path / "two" / "x") == plain and len(set(plain.values())) == 4
  different = [digests(tmp_path / "two" / "x", keep=["anterior"]),
               digests(tmp_path / "two" / "x", keep=["anterior", "posterior"][::-1]),
               digests(tmp_path / "two" / "x", labels=LABELS | {"3": "tail"}),
               digests(tmp_path / "two" / "x", splits=splits)]
  everything = [plain, *different]
  assert len({d for part in everything for d in part.values()}) == 4 * len(everything)
  (tmp_path / "one" / "x" / "labelsTr" / "b.nii.gz").write_text("other")
  again = {c.id: c.digest() for c in read_msd(tmp_path / "one" / "x").cases}
  assert {i for i in again if again[i] != plain[i]} == {"b"}
  (tmp_path / "one" / "x" / "labelsTr" / "b.nii.gz").unlink()
  with pytest.raises(InputError, match="labelsTr/b.nii.gz"):
    read_msd(tmp_path / "one" / "x").cases[1].digest()


def test_real_hippocampus(real_data):
  folder = read_msd(real_data / "hippocampus")
  count = {}
  for case in folder.cases:
    key = case.split, case.dataset, case.classes
    count[key] = count.get(key, 0) + 1
  assert count == {("train", "anterior", ("anterior",)): 80,
                   ("train", "posterior", ("posterior",)): 80,
                   ("val", "hippocampus", ("anterior", "posterior")): 40}
  image, masks = folder.cases[0].read()
  assert masks.shape == (1, *image.array.shape) and 100 < masks.sum() < 5000
