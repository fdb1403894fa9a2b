"""The stream of batches: a pure function of (seed, place), and what its samples may say."""

import collections
import dataclasses
import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.config import Data
from condseg_jax.data import sampling
from condseg_jax.data import selection
from condseg_jax.data.sampling import batches
from condseg_jax.data.sampling import read_box
from condseg_jax.data.selection import datasets
from condseg_jax.data.selection import hold_out
from condseg_jax.data.writer import write_manifest
from condseg_jax.errors import InputError
from condseg_jax.plan import Plan
from support.stored import write_arrays

TABLE = ClassTable.create(["liver", "spleen", "kidney", "pancreas"])
SHAPE = (10, 20, 24)
# Leaves intensities as they are, so that a sample shows where it was cut.
PLAN = Plan("ct", (1.0, 1.0, 1.0), (8, 8, 8), low=-1e9, high=1e9)
BASE = 100_000  # intensity = case · BASE + flat index of the voxel, exact in float32


def coded(number, shape):
  """An image that tells the case and the place of every voxel."""
  return (number * BASE + np.arange(np.prod(shape)).reshape(shape)).astype(np.float32)[..., None]


def write_store(root, contents, shape=SHAPE, modality="ct"):
  """A store of {dataset: (classes, case numbers)}; one small cube per class and case."""
  cases = []
  for dataset, (names, numbers) in contents.items():
    for number in numbers:
      masks = np.zeros((len(names), *shape), np.uint8)
      rng = np.random.default_rng(number)
      for mask in masks:
        corner = [rng.integers(0, n - 2) for n in shape]
        mask[tuple(slice(c, c + 3) for c in corner)] = 1
      masks[:, -1, :2] = 255
      cases.append(write_arrays(
          root, f"case_{number}", coded(number, shape), masks, dataset=dataset, split="train",
          annotated=names, affine=np.eye(len(shape) + 1), source=""))
  return write_manifest(root, modality=modality, spacing=(1.0,) * len(shape),
                                  table=TABLE, cases=cases)


# grain's shuffle takes long where cases are few: 5 ms a sample for 5, 0.3 ms for 80.
CONTENTS = {"a": (("liver",), range(24)), "b": (("spleen",), range(24, 40)),
            "c": (("kidney", "pancreas"), range(40, 52))}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """One dataset of two classes: small ones in larger images."""
  root = tmp_path_factory.mktemp("many")
  return datasets([write_store(root, {"a": (("liver", "kidney"), range(80))}, (12, 32, 32))])


@pytest.fixture(scope="module")
def training(tmp_path_factory):
  """Two single-class datasets and one of two classes."""
  return datasets([write_store(tmp_path_factory.mktemp("abc"), CONTENTS)])


def take(count, training, table, plan, *, seed=3, batch_size=4, start_step=0, process_index=0,
         process_count=1, threads=2, **data):
  stream = batches(training, table, plan, Data(batch_size=batch_size, **data), seed=seed,
                   start_step=start_step, process_index=process_index,
                   process_count=process_count, threads=threads)
  taken = list(itertools.islice(stream, count))
  stream.close()
  return taken


def samples(taken):
  """The samples of some batches one by one."""
  return [type(b)(*leaves) for b in taken for leaves in zip(*b, strict=True)]


def assert_same(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    for x, y in zip(a, b, strict=True):
      assert x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)


def place(sample, shape=SHAPE):
  """Case number and first index of a sample that was cut out of the inside of a volume."""
  number, flat = divmod(int(sample.image.flat[0]), BASE)
  return number, tuple(int(i) for i in np.unravel_index(flat, shape))


def find_case(training, number):
  return next((d, c) for d in training for c in d.cases if c.id == f"case_{number}")


# --- a pure function ----------------------------------------------------------------------------
MODES = [{}, {"batch_class": "single"}, {"classes_per_image": 3}, {"weights": (3.0, 1.0, 0.5)},
         {"process_index": 1, "process_count": 2}]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_resuming_is_slicing(mode, training):
  whole = take(9, training, TABLE, PLAN, **mode)
  for step in (1, 6):
    assert_same(take(9 - step, training, TABLE, PLAN, start_step=step, **mode), whole[step:])
  # Far from the start, past many epochs.
  far = take(3, training, TABLE, PLAN, start_step=100_000, **mode)
  assert_same(take(1, training, TABLE, PLAN, start_step=100_002, **mode), far[2:])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_of_one_sample_for_each_process(processes, training):
  whole = take(6, training, TABLE, PLAN, batch_size=processes)
  parts = [take(6, training, TABLE, PLAN, batch_size=processes, process_index=p,
                process_count=processes) for p in range(processes)]
  for step in range(6):
    assert_same(samples([part[step] for part in parts]), samples([whole[step]]))


def test_threads_change_nothing(training):
  assert_same(take(6, training, TABLE, PLAN, threads=1), take(6, training, TABLE, PLAN, threads=5))


def test_the_seed_counts(training):
  first, again, other = (take(4, training, TABLE, PLAN, seed=s) for s in (3, 3, 4))
  assert_same(first, again)
  assert all((a.image != b.image).any() for a, b in zip(first, other, strict=True))


def test_every_step_is_another(training):
  places = [(place(s), s.class_id[0]) for s in samples(take(15, training, TABLE, PLAN))]
  assert len(set(places)) > 0.9 * len(places)


@pytest.mark.parametrize("processes", [2, 3, 6])
@pytest.mark.parametrize("mode", MODES[:4], ids=str)
def test_the_parts_of_the_processes_make_up_the_batch(processes, mode, training):
  whole = take(4, training, TABLE, PLAN, batch_size=6, **mode)
  parts = [take(4, training, TABLE, PLAN, batch_size=6, process_index=p, process_count=processes,
                **mode) for p in range(processes)]
  for step, batch in enumerate(whole):
    np.testing.assert_array_equal(batch.index, np.arange(6))
    together = samples([part[step] for part in parts])
    assert all(len(part[step].index) == 6 // processes for part in parts)
    assert_same(sorted(together, key=lambda s: s.index), samples([batch]))


def test_batches_have_the_shapes_and_types_they_declare(training):
  batch, = take(1, training, TABLE, PLAN, classes_per_image=2)
  expected = {"image": ((4, 8, 8, 8, 1), np.float32), "class_id": ((4, 2), np.int32),
              "mask": ((4, 8, 8, 8, 2), np.uint8), "beta": ((4, 2), np.float32),
              "index": ((4,), np.int32), "dataset": ((4,), np.int32)}
  assert {k: (v.shape, v.dtype) for k, v in batch._asdict().items()} == expected


@pytest.mark.parametrize("wanted, mode, found", [
    (1, "mixed", 1), (2, "mixed", 2), (0, "mixed", 2), (5, "mixed", 2), (0, "single", 1),
    (2, "single", 1)])
def test_no_decode_that_no_dataset_needs(wanted, mode, found, training):
  data = Data(classes_per_image=wanted, batch_class=mode)
  assert sampling.decodes_per_image(training, TABLE, data) == found
  assert sampling.decodes_per_image(training[:2], TABLE, data) == 1  # of single-class datasets
  batch, = take(1, training, TABLE, PLAN, classes_per_image=wanted, batch_class=mode)
  assert batch.class_id.shape == (4, found)


# --- images without masks -----------------------------------------------------------------------
def test_images_without_masks_are_drawn_beside_the_others(training, tmp_path):
  cases = [write_arrays(tmp_path, f"case_{n}", coded(n, SHAPE), np.zeros((0, *SHAPE), np.uint8),
                        dataset="bare", split="train", annotated=(), affine=np.eye(4), source="")
           for n in range(60, 64)]
  store = write_manifest(tmp_path, modality="ct", spacing=(1, 1, 1), table=ClassTable(()),
                         cases=cases)
  assert store.table.names == () and store.digest(cases[0])[0] == cases[0].image_sha256
  with pytest.raises(InputError, match="no case of the split 'train' has a mask"):
    datasets([store])
  stores = [store, training[0].store]
  assert datasets(stores) == training  # with the numbers, and so the samples, that they had
  (bare,) = selection.bare_datasets(stores)
  assert (bare.name, bare.annotated, bare.number) == ("bare", (), 3)
  stream = batches(training, TABLE, PLAN, Data(batch_size=4, bare=0.5), seed=3, bare=[bare])
  taken = samples(list(itertools.islice(stream, 28)))
  stream.close()
  found = [s for s in taken if s.dataset == 3]
  assert len(found) == 16  # 112 samples, shares 1 : 1 : 1 : 0.5
  assert {place(s)[0] for s in found} == set(range(60, 64))
  assert all(s.beta == 0 and (s.mask == 255).all() for s in found)
  assert len({int(s.class_id[0]) for s in found}) > 1
  plain = [s for s in taken if s.dataset == 0]
  alone = [s for s in samples(take(28, training, TABLE, PLAN)) if s.dataset == 0]
  for a, b in zip(plain, alone, strict=False):
    np.testing.assert_array_equal(a.image, b.image)


# --- proportions --------------------------------------------------------------------------------
def dataset_of(sample, training):
  return find_case(training, place(sample)[0])[0].name


def test_datasets_are_drawn_alike_whatever_their_size(training):
  count = collections.Counter(dataset_of(s, training)
                              for s in samples(take(30, training, TABLE, PLAN)))
  assert count == {"a": 40, "b": 40, "c": 40}


def test_weights_are_proportions(training):
  taken = samples(take(30, training, TABLE, PLAN, weights=(3.0, 1.0, 0.5)))
  count = collections.Counter(dataset_of(s, training) for s in taken)
  for name, weight in zip("abc", (3.0, 1.0, 0.5), strict=True):
    assert count[name] == pytest.approx(120 * weight / 4.5, abs=1.5)


def test_an_epoch_shows_every_case_once(training):
  seen = [place(s)[0] for s in samples(take(12, training[2:], TABLE, PLAN, batch_size=6))]
  epochs = [tuple(seen[i:i + 12]) for i in range(0, 72, 12)]
  assert all(sorted(epoch) == list(range(40, 52)) for epoch in epochs)
  assert len(set(epochs)) == 6  # each in an order of its own


def test_classes_of_a_dataset_are_drawn_alike(many):
  taken = samples(take(100, many, TABLE, PLAN))
  share = np.mean([s.class_id[0] == TABLE.index("kidney") for s in taken])
  assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(len(taken))


def test_single_takes_one_class_of_one_dataset(training):
  taken = take(40, training, TABLE, PLAN, batch_class="single", weights=(1.0, 1.0, 2.0))
  assert all(len(np.unique(b.class_id)) == 1 for b in taken)
  assert all(len({dataset_of(s, training) for s in samples([b])}) == 1 for b in taken)
  count = collections.Counter(TABLE.names[b.class_id[0, 0]] for b in taken)
  assert count == {"liver": 10, "spleen": 10, "kidney": 10, "pancreas": 10}


def test_mixed_takes_several_classes(training):
  assert all(len(np.unique(b.class_id)) > 1 for b in take(20, training, TABLE, PLAN))


def test_datasets_do_not_share_random_numbers(tmp_path):
  """Two datasets of the same images would else be cut at the same places, again and again."""
  stores = [write_store(tmp_path / n, {n: (("liver",), range(4))}) for n in ("a", "b")]
  for mode in ("mixed", "single"):
    taken = samples(take(40, datasets(stores), TABLE, PLAN, batch_size=1, batch_class=mode))
    first, second = [place(s) for s in taken[::2]], [place(s) for s in taken[1::2]]
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert same < 0.2
    orders = [[number for number, _ in part] for part in (first, second)]
    assert orders[0] != orders[1]


# --- what a sample says -------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["mixed", "single"])
def test_only_annotated_classes_say_anything(count, mode, training):
  taken = samples(take(8, training, TABLE, PLAN, classes_per_image=count, batch_class=mode))
  for sample in taken:
    number, start = place(sample)
    dataset, case = find_case(training, number)
    names = [TABLE.names[i] for i in sample.class_id]
    assert len(set(names)) == (count if mode == "mixed" else 1)
    annotated = [n in dataset.annotated for n in names]
    assert sum(annotated) == min(len(names), len(dataset.annotated))
    assert sample.beta.tolist() == annotated
    box = tuple(slice(s, s + 8) for s in start)
    np.testing.assert_array_equal(sample.image, coded(number, SHAPE)[box])
    for i, name in enumerate(names):
      mask = sample.mask[..., i]
      if sample.beta[i]:
        np.testing.assert_array_equal(mask, dataset.store.read_masks(case, [name], box)[0])
      else:
        assert (mask == 255).all()


@pytest.mark.parametrize("size", [(16, 8, 8), (16, 32, 32), (10, 20, 24), (12, 20, 8)])
def test_beyond_the_volume_edges_repeat_and_masks_are_unlabelled(size, training):
  plan = dataclasses.replace(PLAN, subvolume=size)
  taken = samples(take(5, training[:2], TABLE, plan))
  starts = set()
  for sample in taken:
    assert sample.image.shape == (*size, 1) and sample.mask.shape == (*size, 1)
    number = int(sample.image.flat[0]) // BASE
    _, case = find_case(training, number)
    index = np.stack(np.unravel_index(sample.image[..., 0].astype(int) % BASE, SHAPE), -1)
    # Where each voxel comes from, axis by axis: clip(start + i, 0, length - 1).
    start = []
    for axis, (extent, length) in enumerate(zip(size, SHAPE, strict=True)):
      line = np.moveaxis(index[..., axis], axis, -1)
      assert (line == line.reshape(-1, extent)[0]).all()
      line = line.reshape(-1, extent)[0]
      first = line[0] - (line == line[0]).argmin() + 1 if extent > length else line[0]
      first = first if extent > length else int(line[0])
      np.testing.assert_array_equal(line, np.clip(np.arange(first, first + extent), 0, length - 1))
      start.append(int(first))
    starts.add(tuple(start))
    inside = np.ones(size, bool)
    for axis, (first, extent, length) in enumerate(zip(start, size, SHAPE, strict=True)):
      coordinate = np.arange(first, first + extent)
      inside &= ((coordinate >= 0) & (coordinate < length)).reshape(
          [-1 if a == axis else 1 for a in range(3)])
    dataset, _ = find_case(training, number)
    whole = dataset.store.read_masks(case, dataset.annotated)[0]
    np.testing.assert_array_equal(sample.mask[..., 0],
                                  np.where(inside, whole[tuple(index.transpose(3, 0, 1, 2))], 255))
  assert len(starts) == 1 if size == SHAPE else len(starts) > 1


def test_a_subvolume_may_lie_anywhere(many):
  shape = many[0].cases[0].shape
  taken = samples(take(100, many, TABLE, PLAN, foreground_fraction=0.0))
  starts = np.array([place(s, shape)[1] for s in taken])
  for axis, length in enumerate(shape):
    assert set(starts[:, axis]) == set(range(length - 8 + 1))


def test_foreground_is_sampled_more_often(many):
  """A third of the subvolumes is placed around the class, the others anywhere."""
  def share(**settings):
    taken = samples(take(100, many, TABLE, PLAN, **settings))
    return np.mean([(s.mask == 1).any() for s in taken])

  never, always, usual = share(foreground_fraction=0.0), share(foreground_fraction=1.0), share()
  assert always == 1.0 and never < 0.3
  expected = 1 / 3 + 2 / 3 * never
  assert abs(usual - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)


def test_a_case_without_the_class_is_cut_anywhere(tmp_path):
  case = write_arrays(
      tmp_path, "case_0", coded(0, SHAPE), np.zeros((1, *SHAPE), np.uint8), dataset="a",
      split="train", annotated=("liver",), affine=np.eye(4), source="")
  store = write_manifest(tmp_path, modality="ct", spacing=(1, 1, 1), table=TABLE,
                                   cases=[case])
  taken = samples(take(5, datasets([store]), TABLE, PLAN))
  assert all(s.beta == 1 and (s.mask == 0).all() for s in taken)
  assert len({place(s) for s in taken}) > 10


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_normalisation_does_not_know_the_dataset(modality, tmp_path):
  stores = [write_store(tmp_path / n, {n: ((c,), range(3))}, modality=modality)
            for n, c in (("a", "liver"), ("b", "spleen"))]
  plan = Plan(modality, (1.0, 1.0, 1.0), SHAPE, low=7.0, high=250_000.0, mean=80_000.0, sd=70_000.0)
  images = collections.defaultdict(list)
  for sample in samples(take(12, datasets(stores), TABLE, plan)):
    images[sample.class_id[0]].append(sample.image)
  for number in range(3):
    whole = coded(number, SHAPE).astype(np.float64)
    expected = ((np.clip(whole, 7, 250_000) - 80_000) / 70_000 if modality == "ct"
                else (whole - whole.mean()) / whole.std())
    for of_class in images.values():
      assert any(np.allclose(image, expected, atol=1e-4) for image in of_class)
  assert len(images) == 2


def test_pictures(tmp_path):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (30, 41, 3)).astype(np.uint8)
  mask = rng.choice([0, 1, 255], (1, 30, 41)).astype(np.uint8)
  case = write_arrays(tmp_path, "x", picture, mask, dataset="a", split="train",
                              annotated=("liver",), affine=np.eye(3), source="")
  store = write_manifest(tmp_path, modality="rgb", spacing=(1, 1), table=TABLE,
                                   cases=[case])
  plan = Plan("rgb", (1.0, 1.0), (30, 41))
  batch, = take(1, datasets([store]), TABLE, plan)
  for sample in samples([batch]):
    np.testing.assert_allclose(sample.image, picture / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(sample.mask[..., 0], mask[0])
  batch, = take(1, datasets([store]), TABLE, dataclasses.replace(plan, subvolume=(16, 48)))
  assert batch.image.shape == (4, 16, 48, 3) and (batch.mask == 255).any((1, 2, 3)).all()


# --- boxes --------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(0, 100)),
                min_size=1, max_size=3))
def test_a_box_is_its_inside_and_its_padding(axes):
  shape, size = [a[0] for a in axes], [a[1] for a in axes]
  # From a box whose last voxel is the first of the volume to one the other way round.
  start = [1 - s + r % (n + s - 1) for n, s, r in axes]
  inside, padding = read_box(shape, size, start)
  array = np.arange(np.prod(shape)).reshape(shape)
  frame = np.pad(array, [(s, s) for s in size], constant_values=-1)
  expected = frame[tuple(slice(f + s, f + 2 * s) for f, s in zip(start, size, strict=True))]
  np.testing.assert_array_equal(np.pad(array[inside], padding, constant_values=-1), expected)


# --- datasets -----------------------------------------------------------------------------------
def test_datasets_are_the_groups_of_a_split(training):
  assert [(d.name, d.annotated, len(d.cases)) for d in training] == [
      ("a", ("liver",), 24), ("b", ("spleen",), 16), ("c", ("kidney", "pancreas"), 12)]
  store = training[0].store
  # One name in two stores is two datasets.
  assert [d.name for d in datasets([store, store])] == list("abcabc")
  moved = [dataclasses.replace(c, split="val") if c.dataset != "a" else c for c in store.cases]
  store = dataclasses.replace(store, cases=tuple(moved))
  assert [d.name for d in datasets([store])] == ["a"]
  assert [d.name for d in datasets([store], "val")] == ["b", "c"]
  with pytest.raises(InputError, match="no case of the split 'test'"):
    datasets([store], "test")


def test_cases_of_a_dataset_annotate_the_same_classes(training):
  store = training[0].store
  cases = [dataclasses.replace(c, dataset="all") for c in store.cases]
  with pytest.raises(InputError, match="'all' annotate different classes"):
    datasets([dataclasses.replace(store, cases=tuple(cases))])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1.5), st.integers(0, 2**31))
def test_hold_out_splits_a_dataset(training, count, fraction, seed):
  dataset = dataclasses.replace(training[0], cases=training[0].cases[:count])
  (kept, held), = hold_out([dataset], fraction, seed)
  assert {c.id for c in kept.cases} | {c.id for c in held.cases} == {c.id for c in dataset.cases}
  assert len(kept.cases) + len(held.cases) == count
  assert len(held.cases) == min(round(fraction * count), count - 1)
  assert (kept.name, held.store) == (dataset.name, dataset.store)
  assert hold_out([dataset], fraction, seed) == [(kept, held)]


def test_hold_out_depends_on_the_seed(training):
  found = [hold_out(training[:1], 0.1, seed)[0][1].cases for seed in range(30)]
  assert len({tuple(case.id for case in cases) for cases in found}) > 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=9), st.floats(0, 0.9),
       st.integers(0, 2**31))
def test_the_cases_of_a_patient_are_held_out_together(training, patients, fraction, seed):
  """In all datasets of a store; at least one patient of each stays in training."""
  cases = training[0].cases[:len(patients)]
  cases = [dataclasses.replace(c, patient=f"p{p}") for c, p in zip(cases, patients, strict=False)]
  first = dataclasses.replace(training[0], cases=tuple(cases))
  second = dataclasses.replace(first, name="other", cases=tuple(
      dataclasses.replace(c, dataset="other") for c in cases))
  (kept, held), other = hold_out([first, second], fraction, seed)
  of = lambda dataset: {case.patient for case in dataset.cases}
  assert not of(kept) & of(held) and of(kept) | of(held) == of(first) and of(kept)
  assert (of(other[0]), of(other[1])) == (of(kept), of(held))
  if len(of(first)) > 1:
    assert len(held.cases) >= min(round(fraction * len(cases)), len(cases) - max(
        sum(c.patient == p for c in cases) for p in of(first)))


# --- refused ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("changes", "subject"), [
    ({"weights": (1.0, 2.0)}, "data.weights"),
    ({"batch_size": 3, "process_count": 2}, "data.batch_size")])
def test_settings_that_do_not_fit(changes, subject, training):
  with pytest.raises(InputError) as caught:
    take(1, training, TABLE, PLAN, **changes)
  assert caught.value.subject == subject and caught.value.usage


def test_a_class_that_the_network_does_not_know(training):
  with pytest.raises(InputError, match="'spleen'"):
    take(1, training, ClassTable.create(["liver", "kidney", "pancreas"]), PLAN)


def test_damaged_data_is_named(tmp_path):
  store = write_store(tmp_path, {"a": (("liver",), range(2))})
  for path in (tmp_path / "cases/case_1/masks/c").rglob("*"):
    if path.is_file():
      path.unlink()
  with pytest.raises(InputError, match="case_1"):
    take(10, datasets([store]), TABLE, PLAN)


# --- fewer classes, fewer cases, and unlabelled taken for background ---------------------------
def test_learning_one_class_draws_its_dataset_as_learning_all_does(training):
  """The same cases at the same places in the same order, whatever else is learned."""
  (spleen,) = selection.include_classes(training, ["Spleen"])
  assert spleen.annotated == ("spleen",)
  alone = [s for s in samples(take(4, [spleen], TABLE, PLAN))]
  together = [s for s in samples(take(16, training, TABLE, PLAN))
              if dataset_of(s, training) == "b"]
  for a, b in zip(alone, together[:len(alone)], strict=False):
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.mask, b.mask)


def test_of_a_dataset_with_two_classes_one_can_be_learned(training):
  (only,) = selection.include_classes(training, ["pancreas"])
  assert only.name == "c" and only.annotated == ("pancreas",)
  ids = {int(s.class_id[0]) for s in samples(take(4, [only], TABLE, PLAN))}
  assert ids == {TABLE.index("pancreas")}


def test_all_classes_are_learned_unless_some_are_named(training):
  assert selection.include_classes(training, ["lung"]) == []
  assert selection.include_classes(training, []) == training


@given(fewer=st.integers(1, 23), more=st.integers(1, 30), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_max_cases_are_some_of_more(training, fewer, more, seed):
  fewer, more = sorted((fewer, more))
  small, large = (selection.max_cases(training[0], n, seed) for n in (fewer, more))
  assert len(small.cases) == fewer and len(large.cases) == min(more, 24)
  assert {c.id for c in small.cases} <= {c.id for c in large.cases}
  assert selection.max_cases(training[0], 0, seed) == training[0]


def test_unlabelled_taken_for_background(training):
  """Every class has a mask then; of those not annotated it is empty, and unlabelled outside."""
  plan = dataclasses.replace(PLAN, subvolume=(16, 8, 8))  # six slices more than there are
  taken = take(6, training, TABLE, plan, classes_per_image=0, unannotated="background")
  for sample in samples(taken):
    assert sorted(sample.class_id) == [0, 1, 2, 3] and (sample.beta == 1).all()
    annotated = next(d for d in training if d.name == dataset_of(sample, training)).annotated
    for n, class_id in enumerate(sample.class_id):
      mask = sample.mask[..., n]
      if TABLE.names[class_id] not in annotated:
        outside = (mask == 255).all((1, 2))
        assert outside.sum() == 6 and (mask[~outside] == 0).all()
