"""Planted damage: a tenth of the masks, of every kind, and the score of a ranking."""

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.data.writer import write_manifest
from support.stored import write_arrays
from tools import planted

SHAPE = (12, 16, 14)
LOW = {"a": (1, 2, 1), "b": (6, 9, 8)}  # corners of boxes of 5 voxels


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
  """A store of 40 cases with two boxes each, and the same with damage."""
  root, masks = tmp_path_factory.mktemp("stores"), np.zeros((2, *SHAPE), np.uint8)
  for mask, low in zip(masks, LOW.values(), strict=True):
    mask[tuple(slice(s, s + 5) for s in low)] = 1
  cases = [write_arrays(root / "store", f"c{n:02d}", np.zeros((*SHAPE, 1), np.float32), masks,
                        dataset="d", split="train", annotated=tuple(LOW), affine=np.eye(4),
                        source="s") for n in range(40)]
  store = write_manifest(root / "store", modality="mr", spacing=(1, 1, 1),
                         table=ClassTable.create(list(LOW)), cases=cases)
  return store, planted.plant(store, root / "damaged", 3)


def test_a_tenth_of_the_masks_and_no_other(stores):
  store, damaged = stores
  listed = damaged.provenance["planted"]
  assert len(listed) == 8 and {one["kind"] for one in listed} == set(planted.KINDS)
  kinds = {(one["case"], one["class"]): one["kind"] for one in listed}
  sizes = {"missing part": 75, "false region": 175}
  for case, other in zip(store.cases, damaged.cases, strict=True):
    for name, rival in (("a", "b"), ("b", "a")):
      before, elsewhere = store.read_masks(case, [name, rival])
      after, = damaged.read_masks(other, [name])
      kind = kinds.get((case.key, name))
      assert np.array_equal(before, after) == (kind is None)
      if kind in ("swapped", "exchanged"):
        np.testing.assert_array_equal(after, elsewhere)
      elif kind is not None:
        assert after.sum() == sizes.get(kind, 125)


def test_score():
  listed = [{"case": "c0", "class": "a", "kind": "shifted"},
            {"case": "c1", "class": "b", "kind": "mirrored"}]
  rows = [{"case": case, "class": name, "kind": "border", "dice": 0.5}
          for case, name in (("c1", "b"), ("c2", "a"), ("c0", "a"), ("c0", "b"))]
  lines = planted.score(listed, rows)
  assert lines[0] == "1 of the first 2 of 4 are planted: precision 0.50"
  assert "shifted       3. border (0.50)" in lines and "mirrored      1. border (0.50)" in lines
  assert lines[-1] == "not planted   2. border (0.50) a"
