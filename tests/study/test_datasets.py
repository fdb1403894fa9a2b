"""The datasets of studies: the same cases, whatever is annotated of them."""

import json
import shutil

import numpy as np
import pytest

from condseg_jax.data.store import open_prepared
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.pseudo.rules import Rules
from condseg_jax.study import datasets
from condseg_jax.study.pseudo_data import Teaching


@pytest.fixture(scope="module")
def hippocampus(real_data, tmp_path_factory):
  """Four single-class cases and two of val, of the real dataset."""
  root = tmp_path_factory.mktemp("raw")
  folder = root / "hippocampus"
  shutil.copytree(real_data / "hippocampus", folder, symlinks=True,
                  ignore=lambda _, names: [n for n in names if n.endswith(".nii.gz")])
  splits = json.loads((folder / "splits.json").read_text())
  splits = {"train": {name: ids[:2] for name, ids in splits["train"].items()},
            "val": splits["val"][:2]}
  (folder / "splits.json").write_text(json.dumps(splits))
  index = json.loads((folder / "dataset.json").read_text())
  for entry in index["training"]:
    for kind in ("image", "label"):
      (folder / entry[kind]).symlink_to(real_data / "hippocampus" / entry[kind])
  return root


def test_full_is_the_same_cases_with_all_labels(hippocampus, tmp_path):
  single, full = (datasets.dataset(name, hippocampus, tmp_path)
                  for name in ("hippocampus", "hippocampus_full"))
  stores = [Store.open(d.root) for d in (single, full)]
  for one, two in zip(*(s.cases for s in stores), strict=True):
    assert (one.id, one.dataset, one.split) == (two.id, two.dataset, two.split)
    assert one.image_sha256 == two.image_sha256
    assert two.annotated == ("anterior", "posterior")
    assert one.annotated == (("anterior", "posterior") if one.split == "val" else (one.dataset,))
    for name in one.annotated:
      np.testing.assert_array_equal(*(s.read_masks(c, [name])
                                      for s, c in zip(stores, (one, two), strict=True)))
  assert single.truth == full.truth and single.data != full.data


def test_damage_is_met_and_spares_what_is_scored(hippocampus, tmp_path):
  whole, less, more = (
      Store.open(datasets.dataset(f"hippocampus{name}", hippocampus, tmp_path).root)
      for name in ("", "_parts_25", "_false_positives_50"))
  for plain, cut, grown in zip(whole.cases, less.cases, more.cases, strict=True):
    if plain.split == "val":
      assert plain.sha256 == cut.sha256 == grown.sha256
      continue
    count, = plain.positives.values()
    assert cut.positives[plain.dataset] == count - round(0.25 * count)
    assert grown.positives[plain.dataset] == count + round(0.5 * count)


def test_a_dataset_is_asked_for_where_it_is_missing(tmp_path):
  with pytest.raises(InputError, match="under `data`"):
    datasets.dataset("hippocampus", tmp_path, tmp_path)
  assert not datasets.begun("hippocampus", tmp_path)


def test_phantoms_have_the_same_images_under_full_supervision(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets, "PHANTOMS", {"phantom": (("liver", "spleen", "pancreas"), 1)})
  single, full = (datasets.dataset(name, tmp_path, tmp_path) for name in ("phantom",
                                                                          "phantom_full"))
  for organ in ("liver", "spleen", "pancreas"):
    one, two = (Store.open(d.root / organ).cases[0] for d in (single, full))
    assert one.image_sha256 == two.image_sha256 and one.dataset == two.dataset == organ
    assert one.annotated == (organ,) and set(two.annotated) == {"liver", "spleen", "pancreas"}
    assert one.positives[organ] == two.positives[organ]
  assert single.truth == full.truth
  names = [p.name for p in sorted((single.scored / "imagesTr").iterdir())]
  assert {datasets.profile_of(n) for n in names} == {"liver", "spleen", "pancreas"}
  assert datasets.profile_of("hippocampus_001") == ""
  damaged = datasets.dataset("phantom_parts_25", tmp_path, tmp_path)
  less = Store.open(damaged.root / "liver").cases[0].positives["liver"]
  whole = Store.open(single.root / "liver").cases[0].positives["liver"]
  assert 0.7 * whole < less < 0.8 * whole  # by the raw mask, which is resampled afterwards
  assert damaged.truth == single.truth and damaged.data != single.data


@pytest.mark.slow
def test_pseudo_masks_are_made_once_by_networks_that_are_trained_for_it(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets, "PHANTOMS", {"phantom": (("liver", "spleen"), 2)})
  small = {"data.classes": (), "data.presets": {}, "data.subvolume": (8, 16, 16),
           "train.steps": 1, "model.channels": 4, "model.growth": 4, "model.norm": "none",
           "model.strides": ((2, 2, 2),), "model.layers_per_level": (1, 1),
           "augment.probability": 0.0}
  teaching = Teaching("phantom", small, rules=Rules(competence=0.0))
  monkeypatch.setitem(datasets.TEACHINGS, "taught", teaching)
  plain, taught = (datasets.dataset(name, tmp_path, tmp_path) for name in ("phantom", "taught"))
  assert plain.truth == taught.truth and plain.root != taught.root
  run = FoldRun.open(tmp_path / "teachers" / "taught")
  stores = open_prepared(taught.root)
  assert {case.key for store in stores for case in store.cases} == set(run.places)
  for store in stores:
    assert store.provenance["pseudo"]["competence"] == 0 and run.count == 2
    assert all(case.annotated == (case.dataset,) for case in store.cases)
  with monkeypatch.context() as patch:
    patch.setattr("condseg_jax.train.loop.make_step_and_state", None)  # nothing is trained again
    assert datasets.dataset.__wrapped__("taught", tmp_path, tmp_path) == taught
