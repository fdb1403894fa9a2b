"""Predictor: the result is on the grid of the image, and independent of its axis order."""

import dataclasses
import itertools
import json
from pathlib import Path
import tempfile

import jax
import jax.numpy as jnp
from nibabel import orientations
import numpy as np
import pytest
from scipy import ndimage
import tensorstore

from condseg_jax.classes import ClassTable
from condseg_jax.errors import InputError
from condseg_jax.formats.nifti import read_nifti
from condseg_jax.geometry import Geometry
from condseg_jax.geometry import to_canonical
from condseg_jax.geometry import Volume
from condseg_jax.infer import sliding_window
from condseg_jax.infer.probability_store import read_probability
from condseg_jax.infer.schedule import make_schedule
from condseg_jax.infer.settings import Settings
from condseg_jax.models.dense_unet import DenseUNet
from condseg_jax.plan import Plan
from condseg_jax.predictor import Predictor
from condseg_jax.resample import resample_image
from condseg_jax.resample import resample_to


def predictor(spacing=(2.0, 1.0, 1.0), window=(8, 16, 16), modality="mr"):
  """An untrained network: the tests do not depend on training."""
  table = ClassTable.create(["liver", "spleen", "pancreas"], presets={"two": ["liver", "spleen"]})
  strides = ((2,) * len(window),)
  model = DenseUNet(codes=tuple(table.codes.tolist()), strides=strides, layers_per_level=(1, 1),
                    channels=4, growth=4)
  image = jnp.zeros((1, *window, 3 if modality == "rgb" else 1))
  variables = jax.jit(model.init)(jax.random.key(3), image, jnp.zeros(1, jnp.int32))
  return Predictor(model, variables, table, Plan(modality, spacing, window))


@pytest.fixture(scope="module")
def network():
  return predictor()


@pytest.fixture(scope="module")
def volume():
  rng = np.random.default_rng(0)
  affine = np.diag([-1.2, -1.2, 2.5, 1.0])
  affine[:3, 3] = 40, 30, -20
  return Volume(rng.normal(size=(21, 18, 9)).astype(np.float32), affine)


def reoriented(volume, permutation, signs):
  """The same anatomy stored along other axes, without using `geometry`."""
  change = np.column_stack([permutation, signs]).astype(float)
  array = orientations.apply_orientation(volume.array, change)
  affine = volume.affine @ orientations.inv_ornt_aff(change, volume.array.shape)
  return Volume(np.ascontiguousarray(array), affine), change


def test_every_orientation_shows_the_same_anatomy(network, volume):
  def masks(image):
    return network.predict(image, fusion="independent", threshold=0.6)

  plain = masks(volume)
  for mask in plain.masks.values():
    assert 50 < mask.sum() < mask.size - 50, "masks must have a shape to compare"
  signs = itertools.cycle(((1, 1, -1), (-1, 1, -1), (-1, -1, -1)))  # all 48: test_geometry.py
  for permutation in itertools.permutations(range(3)):
    other, change = reoriented(volume, permutation, next(signs))
    found = masks(other)
    np.testing.assert_array_equal(found.label.affine, other.affine)
    for name, mask in plain.masks.items():
      moved = orientations.apply_orientation(mask, change)
      np.testing.assert_array_equal(found.masks[name], moved)
    label = orientations.apply_orientation(plain.label.array, change)
    np.testing.assert_array_equal(found.label.array, label)


@pytest.mark.parametrize("shape", [(20, 17, 1), (1, 30, 5), (3, 3, 3), (40, 8, 12)])
def test_any_shape_comes_back(network, shape):
  affine = np.array([[0.9, 0.2, 0, 3], [-0.2, 0.9, 0, 4], [0, 0, 3.0, 5], [0, 0, 0, 1]])
  image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  label = network.predict(Volume(image, affine)).label
  assert label.array.shape == shape and label.array.dtype == np.uint8
  np.testing.assert_array_equal(label.affine, affine)


def test_classes_asked_for(network, volume):
  whole = network.predict(volume)
  assert dict(whole.names) == {"liver": 1, "spleen": 2, "pancreas": 3}
  some = network.predict(volume, preset="two")
  assert set(np.unique(some.label.array)) <= {0, 1, 2} and set(some.masks) == {"liver", "spleen"}
  one = network.predict(volume, ["Pancreas"], fusion="independent")
  assert set(np.unique(one.label.array)) <= {0, 3}
  np.testing.assert_array_equal(one.masks["pancreas"], one.label.array == 3)


def test_independent_masks_do_not_depend_on_the_other_classes(network, volume):
  together = network.predict(volume, fusion="independent")
  for name in network.table.names:
    alone = network.predict(volume, [name], fusion="independent")
    np.testing.assert_array_equal(alone.masks[name], together.masks[name])
  overlap = sum(mask.astype(int) for mask in together.masks.values())
  assert overlap.max() > 1


def test_units_of_mr_do_not_matter(network, volume):
  scaled = Volume(volume.array * 1000 + 77, volume.affine)
  a, b = network.predict(volume).label.array, network.predict(scaled).label.array
  assert np.mean(a == b) > 0.999
  # Normalisation layers hide a wrong scale; the input shows it.
  whole = resample_image(to_canonical(scaled), network.plan.spacing).array
  np.testing.assert_allclose(network.normalise(scaled).array[..., 0],
                             (whole - whole.mean()) / whole.std(), atol=1e-3)


def test_pictures():
  network = predictor((1.0, 1.0), (16, 16), "rgb")
  picture = np.random.default_rng(2).integers(0, 256, (30, 41, 3), np.uint8)
  label = network.predict(Volume(picture, np.eye(3))).label
  assert label.array.shape == (30, 41)
  with pytest.raises(InputError, match="1 channels"):
    network.predict(Volume(picture[..., 0], np.eye(3)))


def test_a_volume_split_over_the_devices(network, volume):
  """On any grid; a volume of the size of a window gives the same result as that window."""
  assert network.predict(volume, partition=True).label.array.shape == volume.array.shape
  image = np.random.default_rng(4).normal(size=(16, 16, 8)).astype(np.float32)
  image = Volume(image, np.diag([-1.0, -1.0, 2.0, 1.0]))
  window, split = (network.predict(image, fusion="independent", threshold=0.6, partition=p).masks
                   for p in (False, True))
  for name, mask in window.items():
    assert 50 < mask.sum() < mask.size - 50
    assert np.mean(mask == split[name]) > 0.999


def test_voxels_of_metres_are_refused_before_they_are_resampled(network, volume):
  affine = volume.affine @ np.diag([1e4, 1e4, 1e4, 1.0])
  with pytest.raises(InputError, match="voxels at the target spacing .* check the voxel size"):
    network.predict(Volume(volume.array, affine))


def test_mirror_images_are_averaged_along_the_axes_that_have_no_sides(network, volume):
  """By hand: image mirrored, predicted, mirrored back; the window is the whole volume."""
  image = np.random.default_rng(5).normal(size=(16, 16, 8)).astype(np.float32)
  image = Volume(image, np.diag([-1.0, -1.0, 2.0, 1.0]))  # axes L P S: canonical are S P L
  mirrors = dataclasses.replace(network, mirror=("D", "W"))

  def planes(predictor, array, **settings):
    with tempfile.TemporaryDirectory() as folder:
      predictor.predict(Volume(array, image.affine), probabilities=folder, **settings)
      return read_planes(folder)[0]

  expected = np.mean([planes(network, np.flip(image.array, axes)) if not axes else
                      np.flip(planes(network, np.flip(image.array, axes)), [3 - a for a in axes])
                      for axes in ((), (0,), (2,), (0, 2))], axis=0)
  found = planes(mirrors, image.array, tta=True)
  np.testing.assert_allclose(found, expected, atol=2e-3)  # stored as float16
  assert np.abs(found - planes(network, image.array)).max() > 0.01
  with pytest.raises(InputError, match="mirrored no axis"):
    network.predict(volume, tta=True)
  sided = dataclasses.replace(mirrors, table=ClassTable.create(network.table.names,
                                                               no_mirror={"spleen": ("W",)}))
  assert sided._mirror_axes([0, 1]) == [0] and sided._mirror_axes([0]) == [0, 2]


def read_planes(folder):
  store = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}},
                           read=True).result()
  metadata = json.loads((Path(folder) / "zarr.json").read_text())
  return store.read().result().astype(np.float32), metadata["attributes"]


def test_probabilities_of_all_classes_on_the_grid_of_the_plan(network, volume, tmp_path):
  network.predict(volume, ["spleen", "liver"], probabilities=str(tmp_path / "p.zarr"))
  planes, attributes = read_planes(tmp_path / "p.zarr")
  assert attributes["classes"] == ["spleen", "liver"]
  grid = Geometry(planes.shape[1:], np.array(attributes["affine"]))
  np.testing.assert_allclose(grid.spacing, (2.0, 1.0, 1.0), rtol=0.1)
  masks = network.predict(volume, fusion="independent").masks
  canonical = to_canonical(volume).array.shape
  for name, plane in zip(attributes["classes"], planes, strict=True):
    expected = resample_to(plane, canonical, 1) >= 0.5
    assert 50 < expected.sum() < expected.size - 50
    np.testing.assert_array_equal(to_canonical(Volume(masks[name], volume.affine)).array, expected)


def test_a_coarse_look_first_changes_nothing_where_every_class_is_everywhere(network, volume):
  """The untrained network finds all classes everywhere, and none above a high threshold."""
  plain, twice = (network.predict(volume, threshold=0.4, two_pass=p).label.array
                  for p in (False, True))
  assert np.count_nonzero(plain)
  np.testing.assert_array_equal(plain, twice)
  assert not network.predict(volume, threshold=0.999, two_pass=True).label.array.any()


def test_a_coarse_look_says_where(network, volume, monkeypatch):
  """Signs of one class in one corner of the coarse volume: a box with a margin, in fine voxels."""
  class OneSign:
    def __call__(self, image, ids, options, announce, boxes=None):
      plane = np.zeros((2, *image.shape[:-1]), np.float32)
      plane[0, 0, 3:5, -1] = 0.3
      yield sliding_window.Slab(ids, tuple(slice(0, n) for n in plane.shape[1:]), plane)

  fine = predictor((1.0, 1.0, 1.0))
  monkeypatch.setattr(type(fine), "_window_slabs", staticmethod(OneSign()))
  image = Volume(np.zeros((50, 50, 50), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))
  boxes = fine._boxes(image, (2, 0), Settings())
  # 40 coarse voxels of 1.25 mm: 3 to 5 are 3.75 to 6.25 mm, and 10 mm on both sides.
  assert boxes == {2: (slice(0, 12), slice(0, 17), slice(38, 50)),
                   0: (slice(0, 0), slice(0, 0), slice(0, 0))}

  # 2 mm slices: the margin is so many mm, and with `fast` on a grid 1.25 times as coarse.
  fine = predictor((2.0, 1.0, 1.0))
  image = Volume(np.zeros((50, 60, 40), np.float32), np.diag([-1.0, -1.0, 2.0, 1.0]))
  assert fine._boxes(image, (2, 0), Settings())[2] == (slice(0, 7), slice(0, 17), slice(38, 50))
  assert fine._boxes(image, (2, 0), Settings(fast=True))[2] == (
      slice(0, 6), slice(0, 14), slice(31, 40))


def sees(level, spacing, names=("liver", "spleen")):
  """A network that finds every class where the image is brighter than a level."""
  plain = predictor(spacing, (8, 16, 16))
  halves = sliding_window.WindowFunctions(
      lambda variables, image, ids: image[..., 0],
      lambda variables, image, ids: np.stack([image > level] * len(ids)).astype(np.float32),
      False, (1,))
  return dataclasses.replace(plain, table=ClassTable.create(names), functions=halves)


def test_a_locator_says_where_to_look():
  """The locator may have another grid and class order; nothing is found far from its boxes."""
  image = np.zeros((60, 50, 40), np.float32)
  image[8:16, 8:16, 8:16] = 40.0  # also found by the locator
  image[44:52, 36:44, 28:36] = 20.0
  image = Volume(image, np.diag([-1.0, -1.0, 1.0, 1.0]))
  alone = sees(2.0, (1.0, 1.0, 1.0))
  guided = dataclasses.replace(alone, locator=sees(9.0, (2.0, 2.0, 2.0), ("spleen", "liver")))
  everything, found = (p.predict(image, ["liver"]).label.array for p in (alone, guided))
  assert everything[46:50, 38:42, 30:34].all() and everything[10:14, 10:14, 10:14].all()
  np.testing.assert_array_equal(found[:30], everything[:30])
  assert not found[30:].any()
  with pytest.raises(InputError, match="locator"):
    guided.predict(image, partition=True)


def test_a_locator_must_know_what_is_looked_for():
  lacks = dataclasses.replace(sees(2.0, (1.0, 1.0, 1.0)),
                              locator=sees(2.0, (2.0, 2.0, 2.0), ("spleen", "colon")))
  image = Volume(np.ones((20, 20, 20), np.float32), np.eye(4))
  with pytest.raises(InputError, match="has no class 'liver'.*spleen, colon") as error:
    lacks.predict(image)
  assert error.value.usage and "\n" not in str(error.value)
  assert not lacks.predict(image, ["spleen"]).label.array.any()


def test_fast_is_coarser_and_comes_back_on_the_same_grid(network, volume):
  schedules = []

  def note(schedule, seconds, single):
    schedules.append(schedule)
    assert seconds == single > 0
    return lambda windows: None

  for fast in (False, True):
    label = network.predict(volume, fast=fast, announce=note).label
    assert label.array.shape == volume.array.shape
  assert schedules[1].windows < schedules[0].windows


def test_a_part_takes_its_voxels_from_the_whole(network, volume):
  """The pancreas wins wherever it reaches the threshold."""
  masks = network.predict(volume, fusion="independent", threshold=0.45).masks
  label = network.predict(volume, threshold=0.45, within={"pancreas": "liver"}).label.array
  part = label == 3
  assert part.sum() > (network.predict(volume, threshold=0.45).label.array == 3).sum()
  assert np.mean(part == masks["pancreas"]) > 0.9
  plain, alone = (network.predict(volume, ["pancreas"], threshold=0.45, within=w).label.array
                  for w in ({}, {"pancreas": "liver"}))
  assert plain.any()
  np.testing.assert_array_equal(plain, alone)  # without a liver it cannot be detached
  with pytest.raises(InputError, match="kidney"):
    network.predict(volume, within={"kidney": "liver"})


def test_what_helped_held_out_cases_is_done_unless_refused(network, volume):
  cleaner = dataclasses.replace(network, cleaning={"pancreas": {"largest": True,
                                                                "minimum_ml": 0.0}})
  plain = network.predict(volume, threshold=0.45).label.array
  assert ndimage.label(plain == 3, np.ones((3, 3, 3)))[1] > 1
  cleaned = cleaner.predict(volume, threshold=0.45).label.array
  assert ndimage.label(cleaned == 3, np.ones((3, 3, 3)))[1] == 1
  np.testing.assert_array_equal(cleaned[cleaned > 0], plain[cleaned > 0])
  np.testing.assert_array_equal(cleaner.predict(volume, threshold=0.45, clean=False).label.array,
                                plain)
  mask = cleaner.predict(volume, fusion="independent", threshold=0.55).masks["pancreas"]
  assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1


def test_calibration_is_done_before_the_classes_compete(network, volume, tmp_path):
  """The labels are those of the stored probabilities after slope and intercept, by hand."""
  exact = Volume(volume.array, np.diag([-1.0, -1.0, 2.0, 1.0]))  # the grid of the network
  scalings = {"liver": {"slope": 0.4, "intercept": 0.3}, "spleen": {"slope": 2.0, "intercept": 0.1}}
  known = dataclasses.replace(network, calibration=scalings)
  names = network.table.names

  def probabilities(predictor, name):
    label = predictor.predict(exact, probabilities=str(tmp_path / name)).label
    return label, np.stack([read_probability(tmp_path / name, n).astype(np.float64)
                            for n in names])

  plain, before = probabilities(network, "before")
  label, after = probabilities(known, "after")
  by_hand = np.stack([before[k] if (s := scalings.get(n)) is None else 1 / (
      1 + np.exp(-(s["slope"] * np.log(before[k] / (1 - before[k])) + s["intercept"])))
      for k, n in enumerate(names)])
  np.testing.assert_allclose(after, by_hand, atol=2e-3)  # kept as float16
  best = np.where(after.max(0) >= 0.5, after.argmax(0) + 1, 0)
  np.testing.assert_array_equal(to_canonical(label).array, best)
  assert np.mean(label.array != plain.array) > 0.05


def test_a_network_without_calibration_predicts_as_before(network, volume):
  """Bit for bit: slope 1 and intercept 0 would not."""
  for other in ({}, {"kidney": {"slope": 3.0, "intercept": 1.0}}):
    found = dataclasses.replace(network, calibration=other)._probabilities(
        network.normalise(volume).array, [0, 1], Settings(), None, None, (), lambda *_: None)
    expected = network._window_slabs(network.normalise(volume).array, [0, 1], Settings(), None)
    for a, b in itertools.zip_longest(found, expected):
      np.testing.assert_array_equal(a.planes, b.planes)


def test_the_quality_is_that_of_a_class_alone(network, volume, tmp_path):
  """Soft Dice by hand, whatever the fusion and the calibration; a map adds a predicted Dice."""
  dice_map = {"score": [0.0, 1.0], "dice": [0.0, 0.8], "shift": -0.1, "cases": 12}
  known = dataclasses.replace(network, quality={"liver": dice_map},
                              calibration={"liver": {"slope": 2.0, "intercept": 0.2}})
  found = network.predict(volume, probabilities=str(tmp_path / "p")).quality
  assert found, "there must be a structure"
  for name, entry in found.items():
    p = read_probability(tmp_path / "p", name).astype(np.float64)
    inside = p >= 0.5
    assert entry == {"soft_dice": pytest.approx(
        2 * p[inside].sum() / (p.sum() + inside.sum()), rel=1e-2)}
  for fusion in ("argmax", "softmax", "independent"):
    quality = known.predict(volume, ["liver"], fusion=fusion, threshold=0.3).quality["liver"]
    score = quality["soft_dice"]
    assert score == network.predict(volume, ["liver"], threshold=0.3).quality["liver"]["soft_dice"]
    assert quality["predicted_dice"] == pytest.approx(0.8 * score)
    assert quality["dice_bound"] == pytest.approx(max(0, 0.8 * score - 0.1))


def test_members_of_an_ensemble_are_compared(network):
  """In a single window, by their own masks."""
  other = predictor().variables
  other = jax.tree.map(lambda x: x * 1.3 + 0.01, other)
  volume = Volume(np.random.default_rng(4).normal(size=(16, 16, 8)).astype(np.float32),
                  np.diag([-1.0, -1.0, 2.0, 1.0]))
  ensemble = dataclasses.replace(network, others=(other,))
  found = ensemble.predict(volume, ["liver"], threshold=0.3).quality["liver"]["member_dice"]
  a, b = (member.predict(volume, ["liver"], fusion="independent").masks["liver"]
          for member in ensemble.members)
  assert a.any() and b.any()
  assert found == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), rel=5e-3)  # float16
  alone = network.predict(volume, ["liver"], threshold=0.3).quality["liver"]
  assert "member_dice" not in alone


def test_priors_move_classes_to_where_the_training_masks_show_them(network, volume):
  high = np.ones((8, 8, 8))
  high[:4] = 1e-3  # lower half
  known = dataclasses.replace(network, priors={"liver": {"frequency": 0.1,
                                                         "location": high.tolist()}})
  label = known.predict(volume, threshold=0.45, priors=True).label.array
  assert not np.any(label[..., :3] == 1) and np.any(label[..., 6:] == 1)  # the last axis goes up
  with pytest.raises(InputError, match="not in this checkpoint"):
    network.predict(volume, priors=True)


@pytest.mark.parametrize("fusion", ["argmax", "softmax", "independent"])
def test_label_maps_of_any_budget_are_those_of_everything_in_memory(network, volume, fusion):
  """Compared with a reference that keeps all classes, on the network's and the native grid."""
  budgets = [network.predict(volume, fusion=fusion, threshold=0.3, memory_bytes=budget).label.array
             for budget in (None, 600_000, 0)]
  for label in budgets[1:]:
    np.testing.assert_array_equal(label, budgets[0])

  image = network.normalise(volume).array
  schedule = make_schedule(image.shape[:-1], network.plan.subvolume, 3)
  functions = sliding_window.window_functions(network.model)
  planes = sliding_window.class_probabilities(functions, network.variables, image, range(3),
                                              network.plan.subvolume, schedule)
  if fusion == "softmax":
    odds = planes / (1 - planes)
    planes = odds / (1 + odds.sum(0))
  if fusion == "independent":  # stored as float16
    planes = planes.astype(np.float16).astype(np.float32)
  best, which = planes.max(0), planes.argmax(0)
  grid = to_canonical(volume).array.shape
  shares = np.stack([resample_to(np.where(which == k, best, 0), grid, 1) for k in range(3)])
  whole = resample_to(best, grid, 1)
  expected = np.where(whole >= 0.3, shares.argmax(0) + 1, 0)
  second, first = np.sort(shares, axis=0)[-2:]
  clear = (first - second > 1e-5) & (np.abs(whole - 0.3) > 1e-5)  # no near-ties
  found = to_canonical(Volume(budgets[0], volume.affine)).array
  assert clear.mean() > 0.8 and len(np.unique(found[clear])) > 1
  np.testing.assert_array_equal(found[clear], expected[clear])


def test_images_of_another_kind_are_refused(network):
  with pytest.raises(InputError, match="2 axes"):
    network.predict(Volume(np.zeros((8, 8), np.float32), np.eye(3)))
  with pytest.raises(InputError, match="3 channels"):
    network.predict(Volume(np.zeros((8, 8, 8, 3), np.float32), np.eye(4)))


def test_a_real_ct_comes_back_on_its_own_grid(real_data):
  image = read_nifti(real_data / "ct_sample" / "ct.nii.gz")
  network = predictor((6.0, 6.0, 6.0), (16, 32, 32), "ct")
  label = network.predict(image, ["liver"]).label
  assert label.array.shape == image.array.shape
  np.testing.assert_array_equal(label.affine, image.affine)
