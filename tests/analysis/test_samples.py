"""Selection of the analysed cases and subvolumes."""

import numpy as np
import pytest

from condseg_jax.analysis.features import choose_voxels
from condseg_jax.analysis.samples import centred_start
from condseg_jax.analysis.samples import read_samples
from condseg_jax.classes import ClassTable
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.plan import Plan
from support.stored import write_arrays

TABLE = ClassTable.create(["ball", "box"])
PLAN = Plan("mr", (1.0, 1.0), (8, 6))
SHAPE = (12, 5)


@pytest.fixture
def store(tmp_path):
  """Returns a function that writes a store of datasets; the intensity of a case is its number."""
  def write(datasets, split="val"):
    cases = []
    for annotated, count in datasets.items():
      for _ in range(count):
        number = len(cases)
        masks = np.zeros((len(annotated), *SHAPE), np.uint8)
        masks[:, 9, 2] = 1
        image = np.full((*SHAPE, 1), number, np.int16)
        image[9, 2] += 1
        cases.append(write_arrays(tmp_path, f"case_{number}", image, masks,
                                  dataset="-".join(annotated), split=split, annotated=annotated,
                                  affine=np.eye(3), source="test"))
    return Store(tmp_path, "mr", (1.0, 1.0), TABLE, tuple(cases))
  return write


def ids(store, count, **settings):
  samples, _ = read_samples([store], TABLE, PLAN, count, **settings)
  return [int(s.id.rpartition("_")[2]) for s in samples]


@pytest.mark.parametrize("length, size, centre, start", [
    (10, 4, 5.0, 3), (10, 4, 0.0, 0), (10, 4, 9.9, 6), (10, 10, 1.0, 0), (5, 8, 4.0, -1),
    (4, 8, 0.0, -2)])
def test_where_a_window_begins(length, size, centre, start):
  assert centred_start(length, size, centre) == start


def test_a_subvolume_around_the_structure_unlabelled_beyond_the_image(store):
  samples, split = read_samples([store({("box",): 2})], TABLE, PLAN, 1)
  sample = samples[0]
  assert split == "val" and sample.annotated == (1,)
  assert sample.image.shape == (8, 6, 1) and sample.masks.shape == (8, 6, 2)
  assert (sample.masks[..., 0] == 255).all()  # a class that the case does not annotate
  assert (sample.masks[:, 5, 1] == 255).all() and (sample.masks[:, :5, 1] != 255).all()
  assert np.argwhere(sample.masks[..., 1] == 1).tolist() == [[5, 2]]
  assert np.unravel_index(sample.image.argmax(), sample.image.shape) == (5, 2, 0)


def test_fully_labelled_cases_are_preferred(store):
  assert ids(store({("ball",): 2, ("ball", "box"): 3, ("box",): 2}), 9) == [2, 3, 4]


def test_datasets_alternate_and_cases_are_evenly_spaced(store):
  both = store({("ball",): 5, ("box",): 3})
  assert ids(both, 4) == [0, 5, 4, 7]
  assert sorted(ids(both, 99)) == list(range(8))


def test_cases_without_the_classes_of_the_network(store):
  with pytest.raises(InputError, match="annotates no class of this network"):
    read_samples([store({("cone",): 1})], TABLE, PLAN, 4)
  with pytest.raises(InputError, match="no case of the split 'test'"):
    read_samples([store({("box",): 1})], TABLE, PLAN, 4, split="test")


def test_voxels_are_drawn_from_labelled_ones_and_are_the_same_again():
  masks = np.full((8, 8, 2), 255, np.uint8)
  masks[:4, :, 1] = 0
  masks[:2, :2, 1] = 1
  index, mask = choose_voxels(masks, (4, 4), 6, seed=3)
  assert index.max() < 8 and mask.shape == (6, 2)  # the upper half of the level
  assert (mask[:, 0] == 255).all() and (mask[:, 1] != 255).all()
  np.testing.assert_array_equal(index, choose_voxels(masks, (4, 4), 6, seed=3)[0])
  # All voxels of a level that has fewer than requested.
  assert len(choose_voxels(masks, (2, 2), 6, seed=3)[0]) == 4
