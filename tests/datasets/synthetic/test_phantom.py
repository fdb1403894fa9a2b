"""Abdomen phantoms: what is annotated, what is visible, what a threshold can and cannot do."""

import json
from pathlib import Path
import time

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as components

from condseg_jax.datasets.synthetic import phantom
from condseg_jax.datasets.synthetic.anatomy import TISSUES
from condseg_jax.datasets.synthetic.random_field import smooth_field
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.geometry import axcodes
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume

ORGANS = ("liver", "spleen", "pancreas")
TRAIN, TEST = 3, 4


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  out = tmp_path_factory.mktemp("abdomen")
  phantom.write_abdomen(out, organs=ORGANS, size="quick", cases_per_organ=TRAIN,
                        test_cases_per_profile=TEST)
  return out


@pytest.fixture(scope="module")
def tests(written):
  """{(scanner, case): (image_DHW, label_DHW, spacing_DHW)} of the test cases, as read back."""
  found = {}
  for image, label in pairs(written / "test"):
    scanner, case = image.name.removesuffix(".nii.gz").removeprefix("profile-").split("_case-")
    image, label = (to_canonical(read_nifti(p)) for p in (image, label))
    found[scanner, int(case)] = image.array, label.array, image.spacing
  return found


def index_of(folder: Path):
  return json.loads((folder / "dataset.json").read_text())


def pairs(folder: Path):
  return [(folder / e["image"], folder / e["label"]) for e in index_of(folder)["training"]]


def best_window_dice(hu, positive):
  """The best Dice of {lo <= hu < hi} over every pair of thresholds."""
  hu = np.clip(hu, -1024, 1024).astype(int) + 1024
  hits, total = (np.bincount(h, minlength=2049) for h in (hu[positive], hu.ravel()))
  below_hits, below = (np.concatenate([[0], np.cumsum(n)]) for n in (hits, total))
  inside = np.triu(below_hits[None, :] - below_hits[:, None])
  size = np.triu(below[None, :] - below[:, None])
  return (2 * inside / (size + hits.sum())).max()


def test_best_window_is_exhaustive():
  hu, positive = np.array([0, 10, 20, 30, 40]), np.array([False, True, False, True, False])
  assert best_window_dice(hu, positive) == pytest.approx(2 * 2 / (3 + 2))
  assert best_window_dice(hu, hu > 15) == 1


def test_folders_and_indices(written):
  assert sorted(p.name for p in written.iterdir()) == ["test", "train"]
  assert sorted(p.name for p in (written / "train").iterdir()) == sorted(ORGANS)
  for organ in ORGANS:
    index = index_of(written / "train" / organ)
    assert index["labels"] == {"0": "background", "1": organ}
    assert index["modality"] == {"0": "CT"} and index["test"] == []
    assert index["numTraining"] == len(index["training"]) == TRAIN
  index = index_of(written / "test")
  assert index["labels"] == {"0": "background", "1": "liver", "2": "spleen", "3": "pancreas"}
  names = [Path(e["image"]).name for e in index["training"]]
  assert names == [f"profile-{o}_case-{i:03d}.nii.gz" for o in ORGANS for i in range(TEST)]
  assert not list(written.rglob(".*"))  # no temporary file is left
  for folder in (written / "test", *(written / "train").iterdir()):
    for image, label in pairs(folder):
      assert image.is_file() and label.is_file()
    assert len(list(folder.rglob("*.nii.gz"))) == 2 * index_of(folder)["numTraining"]


def test_files_are_int16_ct_with_uint8_labels_on_the_same_grid(written):
  for folder in (written / "test", *(written / "train").iterdir()):
    for image, label in pairs(folder):
      image, label = nibabel.load(image), nibabel.load(label)
      assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
      assert label.header["intent_code"] == 1002 and image.header["intent_code"] == 0
      assert image.shape == label.shape
      np.testing.assert_array_equal(image.affine, label.affine)
      np.testing.assert_allclose(image.header.get_zooms(),
                                 np.linalg.norm(image.affine[:3, :3], axis=0), rtol=1e-5)


def test_a_training_set_annotates_one_organ_and_shows_all():
  for organ in ORGANS:
    image, tissue = phantom.draw_case(organ, 0, size="quick")
    for other in ORGANS:
      mask = phantom.label_map(tissue.array, [other]) == 1
      assert mask.sum() > 150
      assert 20 < np.median(image.array[mask]) < 130, "drawn as soft tissue in every set"


def test_training_labels_hold_their_organ_alone(written):
  for organ in ORGANS:
    for case, (_, path) in enumerate(pairs(written / "train" / organ)):
      _, tissue = phantom.draw_case(organ, case, size="quick")
      label = read_nifti(path).array
      np.testing.assert_array_equal(label, phantom.label_map(tissue.array, [organ]))
      assert set(np.unique(label)) == {0, 1}


def test_every_organ_is_in_every_test_case_under_every_profile(tests):
  assert {scanner for scanner, _ in tests} == set(ORGANS)
  for key, (_, label, _) in tests.items():
    assert set(np.unique(label)) == {0, 1, 2, 3}, key
    assert (label == 3).sum() >= 150, key


@pytest.mark.parametrize("scanner", phantom.PROFILES)
def test_all_five_organs_fit_every_field_of_view(scanner):
  for case in range(6):
    _, tissue = phantom.draw_case(scanner, case, size="quick", seed=3)
    label = phantom.label_map(tissue.array, phantom.ORGANS)
    assert np.bincount(label.ravel(), minlength=6)[1:].min() >= 150


def test_organs_are_one_piece_and_touch(tests):
  touching = 0
  for key, (_, label, _) in tests.items():
    for organ in (1, 2, 3):
      parts, count = components(label == organ)
      largest = np.bincount(parts.ravel())[1:].max() if count else 0
      assert largest > 0.9 * (label == organ).sum(), (key, organ)
    near_pancreas = binary_dilation(label == 3)
    touching += bool(np.isin(label[near_pancreas], (1, 2)).any())
  assert touching >= len(tests) // 3


def test_liver_right_spleen_left_kidneys_behind_and_below(tests):
  """(D, H, W) runs to superior, posterior and left, whatever order the file has."""
  for scanner in ORGANS:
    image, tissue = phantom.draw_case(scanner, 0, size="quick", split="test")
    label = to_canonical(Volume(phantom.label_map(tissue.array, phantom.ORGANS), tissue.affine))
    np.testing.assert_array_equal(np.where(label.array < 4, label.array, 0), tests[scanner, 0][1])
    (dl, hl, wl), (ds, _, ws), (_, hp, _), (dk, hk, wk), (dr, _, wr) = (
        np.argwhere(label.array == organ).mean(axis=0) for organ in range(1, 6))
    assert max(wl, wr) < label.array.shape[2] / 2 < wk < ws
    assert hk > hp and dk < ds and dr < dl
    assert axcodes(image.affine) == tuple(phantom.PROFILES[scanner].axcodes)


def test_labels_of_a_subset_follow_its_order():
  _, tissue = phantom.draw_case("spleen", 1, size="quick")
  label = phantom.label_map(tissue.array, ("right_kidney", "spleen"))
  names = np.array([t.organ or "" for t in TISSUES])[tissue.array]
  np.testing.assert_array_equal(label == 1, names == "right_kidney")
  np.testing.assert_array_equal(label == 2, names == "spleen")


def test_no_intensity_window_finds_an_organ(tests):
  hu = np.concatenate([image.ravel() for image, _, _ in tests.values()])
  labels = np.concatenate([label.ravel() for _, label, _ in tests.values()])
  for organ, name in enumerate(ORGANS, 1):
    assert best_window_dice(hu, labels == organ) < 0.5, name
  for small in (2, 3):
    each = [best_window_dice(image, label == small) for image, label, _ in tests.values()]
    assert max(each) < 0.5


def test_no_intensity_window_finds_a_kidney():
  cases = [phantom.draw_case(s, i, size="quick", seed=1) for s in ORGANS for i in range(2)]
  hu = np.concatenate([image.array.ravel() for image, _ in cases])
  for organ in ("left_kidney", "right_kidney"):
    mask = [phantom.label_map(tissue.array, [organ]).ravel() == 1 for _, tissue in cases]
    assert best_window_dice(hu, np.concatenate(mask)) < 0.5


def noise(image, label):
  """Noise sd, robust to vessels: the median difference of two slices inside the liver.

  median |d| = 0.6745 sd(d) for a normal d, and sd(d) = sqrt(2) times the noise.
  """
  both = (label[1:] == 1) & (label[:-1] == 1)
  difference = (image[1:].astype(float) - image[:-1])[both]
  difference += np.random.default_rng(0).uniform(-0.5, 0.5, difference.shape)  # undo rounding
  return np.median(np.abs(difference - np.median(difference))) / 0.6745 / np.sqrt(2)


def test_every_scanner_can_be_told_by_noise_and_spacing(tests):
  sizes = phantom.SIZES["quick"].spacing_DHW
  levels = {}
  for scanner in ORGANS:
    profile = phantom.PROFILES[scanner]
    scale = np.array((profile.thickness, profile.pixel, profile.pixel))
    mine = [case for (s, _), case in tests.items() if s == scanner]
    for _, _, spacing in mine:
      np.testing.assert_allclose(spacing, sizes * scale, rtol=1e-4)
    levels[scanner] = [noise(image, label) for image, label, _ in mine]
  assert max(levels["liver"]) < min(levels["pancreas"])
  assert max(levels["pancreas"]) < min(levels["spleen"])
  spacings = {(p.thickness, p.pixel) for p in phantom.PROFILES.values()}
  assert len(spacings) == len({p.noise_hu for p in phantom.PROFILES.values()}) == 5


def test_case_k_does_not_depend_on_how_many_there_are(written, tmp_path):
  phantom.write_abdomen(tmp_path, organs=("spleen",), size="quick", cases_per_organ=1,
                        test_cases_per_profile=1)
  for name in ("train/spleen/{}Tr/spleen_000.nii.gz", "test/{}Tr/profile-spleen_case-000.nii.gz"):
    one, many = (read_nifti(root / name.format("images")) for root in (tmp_path, written))
    np.testing.assert_array_equal(one.array, many.array)
    np.testing.assert_array_equal(one.affine, many.affine)
  one, many = (read_nifti(root / name.format("labels")).array for root in (tmp_path, written))
  np.testing.assert_array_equal(one == 1, many == 2)


def test_seed_split_scanner_and_case_each_make_another_patient():
  def tissue(scanner="liver", case=0, **options):
    return phantom.draw_case(scanner, case, size="quick", **options)[1].array

  one = tissue()
  np.testing.assert_array_equal(one, tissue())
  for other in (tissue(seed=1), tissue(split="test"), tissue(case=1)):
    assert one.shape != other.shape or (one != other).mean() > 0.02
  assert phantom.draw_case("liver", 0, size="quick")[0].array.tobytes() != (
      phantom.draw_case("spleen", 0, size="quick")[0].array.tobytes())


def test_sizes_show_about_the_same_field_of_view():
  fields = {name: np.multiply(s.shape_DHW, s.spacing_DHW) for name, s in phantom.SIZES.items()}
  for field in fields.values():
    np.testing.assert_allclose(field, fields["quick"], rtol=0.03)
  image, tissue = phantom.draw_case("liver", 0, size="standard")
  assert image.array.shape[:2] == (128, 128)
  millilitres = np.prod(image.spacing) / 1000
  volume = (phantom.label_map(tissue.array, ["liver"]) == 1).sum() * millilitres
  assert 700 < volume < 2200


def test_quick_cases_are_quick():
  phantom.draw_case("liver", 0, size="quick")
  start = time.process_time()
  for case in range(8):
    phantom.draw_case("liver", case, size="quick")
  assert (time.process_time() - start) / 8 < 0.15


@pytest.mark.parametrize("wrong", [{"organs": ("heart",)}, {"organs": ()}, {"size": "huge"},
                                   {"organs": ("liver", "liver")}])
def test_unknown_choices_are_told(tmp_path, wrong):
  with pytest.raises(InputError) as caught:
    phantom.write_abdomen(tmp_path / "out", **wrong)
  assert caught.value.usage and "liver" in str(caught.value) or "quick" in str(caught.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape, step", [((60, 50, 40), (3.3, 2.5, 4)), ((300, 200), (4, 7.5))])
def test_smooth_field_has_unit_variance_and_no_jumps(shape, step):
  field = smooth_field(np.random.default_rng(0), shape, step)
  assert field.shape == shape and field.dtype == np.float32
  assert abs(field.mean()) < 0.1 and abs(field.std() - 1) < 0.1
  assert np.abs(np.diff(field, axis=0)).max() < 6 / step[0]
