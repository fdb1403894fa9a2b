"""What the sampler makes of pseudo-masks, and that nothing else sees them."""

import dataclasses
import itertools

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.config import Data
from condseg_jax.data import sampling
from condseg_jax.data import selection
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.priors import class_priors
from condseg_jax.data.priors import smallest_ml
from condseg_jax.data.store import Case
from condseg_jax.data.writer import write_manifest
from condseg_jax.evaluate.cases import stored_case
from condseg_jax.plan import Plan
from support.stored import write_arrays

NAMES = ("liver", "spleen", "kidney")
TABLE = ClassTable.create(NAMES)
SHAPE = (8, 24, 24)
PLAN = Plan("ct", (1.0, 1.0, 1.0), (8, 8, 8), low=-1e9, high=1e9)
# dataset → classes annotated, and with a pseudo-mask
CONTENTS = {"a": (("liver",), ("spleen", "kidney")), "b": (("spleen", "liver", "kidney"), ()),
            "c": (("spleen",), ("liver",)), "bare": ((), ("liver",))}


def write_store(root, *, pseudo):
  """Every mask has the value k at its 3³ voxels, which lie on one diagonal; cases have one mask."""
  cases = []
  for number, (dataset, (annotated, further)) in enumerate(CONTENTS.items()):
    names = (*annotated, *further) if pseudo else annotated
    masks = np.zeros((len(names), *SHAPE), np.uint8)
    for name, mask in zip(names, masks, strict=True):
      start = 7 * NAMES.index(name)
      mask[2:5, start:start + 3, start:start + 3] = 1
      mask[0] = 255
    image = np.random.default_rng(number).normal(size=(*SHAPE, 1)).astype(np.float32)
    cases.append(write_arrays(root, f"case_{number}", image, masks, dataset=dataset, split="train",
                              annotated=annotated, affine=np.eye(4), source="",
                              pseudo=further if pseudo else ()))
  return write_manifest(root, modality="ct", spacing=(1, 1, 1), table=TABLE, cases=cases)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  """The same data without pseudo-masks and with them."""
  return [write_store(tmp_path_factory.mktemp("store"), pseudo=flag) for flag in (False, True)]


def samples(store, count=60, **data):
  data = {"batch_size": 4, "bare": 1.0} | data
  stream = sampling.batches(selection.datasets([store]), TABLE, PLAN, Data(**data), seed=0,
                            bare=selection.bare_datasets([store]))
  taken = list(itertools.islice(stream, count // 4))
  stream.close()
  return [type(b)(*leaves) for b in taken for leaves in zip(*b, strict=True)]


def test_only_the_masks_tell_of_them(stores):
  """Priors, statistics, volumes and scores are of annotated classes; digests are of all."""
  plain, with_pseudo = stores
  for one, other in zip(plain.cases, with_pseudo.cases, strict=True):
    assert dataclasses.replace(other, pseudo={}, sha256=one.sha256) == one
    assert (one.sha256 == other.sha256) == (not other.pseudo)
    assert with_pseudo.digest(other) == (other.image_sha256, other.sha256)
    assert Case.from_json(dataclasses.asdict(other)) == other
    scored = stored_case(with_pseudo, other, "x")
    assert scored.annotated == one.annotated
    for name in other.pseudo:
      mask, = with_pseudo.read_masks(other, [name])
      assert all(mask[place] == 1 for place in other.pseudo[name]) and len(other.pseudo[name]) == 27
  for describe in (fingerprint, smallest_ml, lambda cases: class_priors(cases, NAMES)):
    assert describe(plain.cases) == describe(with_pseudo.cases)


def test_true_masks_come_first_and_pseudo_masks_weigh_less(stores):
  _, store = stores
  seen = set()
  for sample in samples(store, 120, pseudo_weight=0.25):
    dataset = list(CONTENTS)[sample.dataset]
    annotated, pseudo = CONTENTS[dataset]
    ids = [NAMES[k] for k in sample.class_id]
    own = min(len(annotated), 1)  # classes_per_image
    assert len(ids) == len(set(ids)) == 2
    assert set(ids[:own]) <= set(annotated)
    decoded = own + min(len(pseudo), 2 - own)
    assert set(ids[own:decoded]) <= set(pseudo)
    np.testing.assert_array_equal(sample.beta, np.repeat([1, 0.25, 0],
                                                         [own, decoded - own, 2 - decoded]))
    for n in range(2):
      assert (sample.mask[..., n] == 255).all() == (n >= decoded)
    seen.add((dataset, *ids[:decoded]))
  assert seen == {("a", "liver", "spleen"), ("a", "liver", "kidney"), ("b", "spleen"),
                  ("b", "liver"), ("b", "kidney"), ("c", "spleen", "liver"), ("bare", "liver")}


def test_images_without_masks_are_cut_around_them(stores):
  _, store = stores
  found = [s for s in samples(store, 80, foreground_fraction=1.0) if list(CONTENTS)[s.dataset] ==
           "bare"]
  assert found and all((s.mask[..., 0] == 1).any() for s in found)


@pytest.mark.parametrize("data", [{"pseudo_weight": 0.0}, {"batch_class": "single", "bare": 0.0},
                                  {"unannotated": "background"}])
def test_where_they_are_not_used_batches_are_those_without(data, stores):
  one, other = (samples(store, **data) for store in stores)
  for a, b in zip(one, other, strict=True):
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("wanted, decodes", [(1, 2), (2, 3), (0, 3)])
def test_one_decode_more(wanted, decodes, stores):
  plain, store = (selection.datasets([s]) for s in stores)
  data = Data(classes_per_image=wanted)
  assert sampling.decodes_per_image(store, TABLE, data) == decodes
  assert sampling.decodes_per_image(plain, TABLE, data) == sampling.own_decodes(store, data)
