"""A store written again: what changes, what is shared, and what happens after an interruption."""

import functools
import os
from pathlib import Path

import numpy as np
import pytest

from condseg_jax.classes import ClassTable
from condseg_jax.classes import UNLABELLED
from condseg_jax.data import rewrite as rewrite_lib
from condseg_jax.data.rewrite import Change
from condseg_jax.data.rewrite import constant
from condseg_jax.data.rewrite import rewrite
from condseg_jax.data.writer import write_manifest
from condseg_jax.errors import InputError
from support.stored import write_arrays

SHAPE = (40, 9, 7)  # two slabs
RECORD = "why.json"


@pytest.fixture
def store(tmp_path):
  rng = np.random.default_rng(0)
  cases = [write_arrays(tmp_path / "store", f"case_{n}", rng.normal(size=(*SHAPE, 1)).astype("f4"),
                        rng.integers(0, 2, (3, *SHAPE)).astype(np.uint8), dataset="d",
                        split="train", annotated=("a", "b"), pseudo=("c",), affine=np.eye(4),
                        source=f"source {n}") for n in range(3)]
  return write_manifest(tmp_path / "store", modality="mr", spacing=(1, 1, 1),
                        table=ClassTable.create(["a", "b", "c"]), cases=cases,
                        provenance={"by": "hand"})


def blanked(case, *names):
  return Change(functools.partial(dict.fromkeys, names, constant(case, UNLABELLED)),
                "/".join(names), case.dataset)


def files(folder):
  return {path.relative_to(folder): path.stat().st_ino for path in Path(folder).rglob("*")
          if path.is_file()}


def test_changed_masks_and_shared_files(store, tmp_path):
  changed = store.cases[1]
  out = rewrite(store, tmp_path / "out", {changed.key: blanked(changed, "b")}, RECORD, {"why": 1})
  assert out.provenance == {"by": "hand", "why": 1}
  for before, after in zip(store.cases, out.cases, strict=True):
    assert out.digest(after) == (after.image_sha256, after.sha256)
    assert after.image_sha256 == before.image_sha256 and after.pseudo == before.pseudo
    np.testing.assert_array_equal(out.read_masks(after, "ac"), store.read_masks(before, "ac"))
    old, new = (files(s.root / "cases" / before.id) for s in (store, out))
    if before == changed:
      assert (out.read_masks(after, "b") == UNLABELLED).all()
      assert after.positives == {"a": before.positives["a"], "b": 0}
      assert not set(old.values()) & set(new.values())
    else:
      assert after == before and old == new, "not the same files"


def test_a_case_may_lose_all_masks_but_those_nobody_drew(store, tmp_path):
  case = store.cases[0]
  out = rewrite(store, tmp_path / "out", {case.key: Change(dict, "all", "other", annotated=False)},
                RECORD, {})
  after = out.cases[0]
  assert (after.annotated, after.dataset, tuple(after.pseudo)) == ((), "other", ("c",))
  np.testing.assert_array_equal(out.read_masks(after, "c"), store.read_masks(case, "c"))


def test_an_interrupted_call_goes_on(store, tmp_path, monkeypatch):
  change = {store.cases[0].key: blanked(store.cases[0], "a")}
  again = functools.partial(rewrite, store, tmp_path / "out", change, RECORD, {"why": 1})

  def fails(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(rewrite_lib, "_linked", fails)
    with pytest.raises(KeyboardInterrupt):
      again()
  assert not (tmp_path / "out" / "manifest.json").exists()
  first = files(tmp_path / "out" / "cases")
  out = again()
  assert first.items() <= files(tmp_path / "out" / "cases").items(), "written twice"
  assert again().cases == out.cases
  with pytest.raises(InputError, match="another choice"):
    rewrite(store, tmp_path / "out", {}, RECORD, {"why": 2})
  with pytest.raises(InputError, match="holds other data"):
    rewrite(store, store.root, {}, RECORD, {})


def test_without_links_files_are_copied(store, tmp_path, monkeypatch):
  def refused(*_):
    raise OSError

  monkeypatch.setattr(os, "link", refused)
  out = rewrite(store, tmp_path / "out", {}, RECORD, {})
  assert out.cases == store.cases and out.digest(out.cases[2]) == store.digest(store.cases[2])


def test_the_first_store_may_be_prepared_again(store, tmp_path):
  """Its files are replaced, so that this one stays; written again it takes them over."""
  again = functools.partial(rewrite, out=tmp_path / "out", changes={}, record=RECORD, provenance={})
  out, case = again(store), store.cases[0]
  prepared = write_arrays(
      store.root, case.id, store.read_image(case), np.zeros((3, *SHAPE), np.uint8), dataset="d",
      split="train", annotated=("a", "b"), pseudo=("c",), affine=np.eye(4), source="another")
  assert out.digest(out.cases[0])[1] == case.sha256 != prepared.sha256
  newer = write_manifest(store.root, modality="mr", spacing=(1, 1, 1), table=store.table,
                         cases=[prepared, *store.cases[1:]])
  out = again(newer)
  assert out.digest(out.cases[0])[1] == prepared.sha256
