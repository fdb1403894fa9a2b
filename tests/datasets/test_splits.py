"""Splits and carving: every case once, patients together, the rest untouched."""

import collections
import dataclasses
from pathlib import Path

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from condseg_jax.annotation import Annotation
from condseg_jax.data.patients import patient_of
from condseg_jax.datasets.carve import annotate_in_full
from condseg_jax.datasets.carve import partial_labels_by_cases
from condseg_jax.datasets.carve import partial_labels_by_frames
from condseg_jax.datasets.raw import leaks
from condseg_jax.datasets.raw import RawCase
from condseg_jax.datasets.raw import RawFolder
from condseg_jax.datasets.raw import RawLabel
from condseg_jax.datasets.raw import validated
from condseg_jax.datasets.splits import k_fold
from condseg_jax.errors import InputError

CLASSES = ("liver", "spleen", "pancreas")


def folder(groups, test=2):
  """Cases with a group each ("" for none), then some of the split `test`."""
  said = Annotation({name: (i + 1,) for i, name in enumerate(CLASSES)}, (), (0, 1, 2, 3))
  cases = [RawCase(f"c{i}", Path(f"c{i}.nii"), (RawLabel(Path(f"l{i}.nii"), said),), "all", "train",
                   group) for i, group in enumerate(groups)]
  cases += [RawCase(f"t{i}", Path("t.nii"), (RawLabel(Path("t.nii"), said),), "all", "test")
            for i in range(test)]
  return RawFolder(Path("root"), "ct", tuple(cases))


GROUPS = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e"]), min_size=12, max_size=40)


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(2, 4), st.integers(0, 9))
def test_folds_hold_every_case_once_and_patients_together(groups, folds, seed):
  raw = folder(groups)
  if len({g for g in groups if g}) + groups.count("") < folds:
    return
  held = [{c.id for c in k_fold(raw, folds, i, seed).cases if c.split == "val"}
          for i in range(folds)]
  assert sorted(x for part in held for x in part) == sorted(f"c{i}" for i in range(len(groups)))
  where = {case_id: i for i, part in enumerate(held) for case_id in part}
  for name in set(groups) - {""}:
    assert len({where[f"c{i}"] for i, g in enumerate(groups) if g == name}) == 1
  largest = max(collections.Counter(g for g in groups if g).values(), default=1)
  sizes = [len(part) for part in held]
  assert max(sizes) - min(sizes) <= largest and min(sizes) > 0
  fold = k_fold(raw, folds, 0, seed)
  assert [c.split for c in fold.cases][-2:] == ["test"] * 2
  assert fold.provenance == {"folds": {"folds": folds, "fold": 0, "seed": seed}}


def test_folds_depend_on_the_seed():
  raw = folder([""] * 20)
  parts = {frozenset(c.id for c in k_fold(raw, 4, 0, seed).cases if c.split == "val")
           for seed in range(5)}
  assert len(parts) > 1 and k_fold(raw, 4, 0, 3) == k_fold(raw, 4, 0, 3)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (3, 3), (3, -1), (21, 0)])
def test_folds_that_do_not_exist(folds, fold):
  with pytest.raises(InputError) as caught:
    k_fold(folder([""] * 20), folds, fold)
  assert caught.value.usage


@pytest.mark.parametrize(("case_id", "patient"), [
    ("hippocampus_190", ""), ("liver_012_1", "liver_012"), ("sub-01_ses-2_T1w", "sub-01"),
    ("aachen_000000_000019", "aachen_000000"), ("0016E5_01890", "0016E5"), ("img0001", ""),
    ("patient001_frame12", "patient001"), ("p03-07", "p03"), ("s0001", ""), ("a", "")])
def test_the_patient_that_an_id_names(case_id, patient):
  assert patient_of(case_id) == patient


def test_a_patient_in_two_splits_is_a_leak():
  raw = folder(["a", "a", "b", ""], test=1)
  assert validated(raw) == raw and not leaks(raw)
  parted = [dataclasses.replace(case, split=split) for case, split in zip(
      raw.cases, ("train", "val", "train", "val", "test"), strict=True)]
  error, = leaks(dataclasses.replace(raw, cases=tuple(parted)))
  assert str(error).startswith("c1.nii: is in val, but c0 of the same patient (a) in train")
  with pytest.raises(InputError, match="same patient"):
    validated(dataclasses.replace(raw, cases=tuple(parted)))
  # Folds keep the patients of train and val together, but leave those of test where they are.
  assert not leaks(k_fold(dataclasses.replace(raw, cases=tuple(parted)), 2, 0))
  parted[1] = dataclasses.replace(parted[1], split="test")
  assert leaks(k_fold(dataclasses.replace(raw, cases=tuple(parted)), 2, 0))


def test_the_patient_by_an_expression():
  assert patient_of("abc-12-x", "^([a-z]+)-") == "abc" and patient_of("12", "^([a-z]+)-") == ""


# --- carving ------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(0, 9))
def test_carved_cases_are_disjoint_even_and_of_whole_patients(groups, seed):
  raw = folder(groups)
  if len({g for g in groups if g}) + groups.count("") < len(CLASSES):
    return
  carved = partial_labels_by_cases(raw, seed)
  assert [c.id for c in carved.cases] == [c.id for c in raw.cases]
  training = [c for c in carved.cases if c.split == "train"]
  assert all(c.classes == (c.dataset,) for c in training)
  for name in set(groups) - {""}:
    assert len({c.dataset for c in training if c.group == name}) == 1
  units = collections.Counter()
  for key in {(c.group or c.id, c.dataset) for c in training}:
    units[key[1]] += 1
  assert set(units) == set(CLASSES) and max(units.values()) - min(units.values()) <= 1
  assert carved.cases[-2:] == raw.cases[-2:]
  assert carved.provenance == {"carve": {"by": "cases", "seed": seed}}


def test_carving_depends_on_the_seed_alone():
  raw = folder([""] * 12)
  deals = {tuple(c.dataset for c in partial_labels_by_cases(raw, seed).cases) for seed in range(5)}
  assert len(deals) > 1 and partial_labels_by_cases(raw, 1) == partial_labels_by_cases(raw, 1)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_frames_go_round_robin_within_each_city_and_on(block):
  raw = folder(["a"] * 7 + ["b"] * 4)
  names, turn = [], 0
  for size in (7, 4):
    for start in range(0, size, block):
      names += [CLASSES[turn % 3]] * min(block, size - start)
      turn += 1
  carved = partial_labels_by_frames(raw, block)
  assert [c.dataset for c in carved.cases if c.split == "train"] == names
  assert carved.cases[-2:] == raw.cases[-2:]


def test_what_cannot_be_carved():
  with pytest.raises(InputError, match="2 patients for 3 classes"):
    partial_labels_by_cases(folder(["a", "b", "b"]))
  with pytest.raises(InputError, match="block: must be at least 1, not 0"):
    partial_labels_by_frames(folder([""] * 6), 0)
  with pytest.raises(InputError, match="every class"):
    partial_labels_by_cases(partial_labels_by_cases(folder([""] * 6)))


def test_carved_cases_annotated_in_full_again_are_the_cases_before_in_the_datasets_after():
  raw = folder([""] * 9)
  carved = partial_labels_by_cases(raw)
  full = annotate_in_full(carved)
  assert [c.labels for c in full.cases] == [c.labels for c in raw.cases]
  assert [(c.id, c.dataset, c.split) for c in full.cases] == [
      (c.id, c.dataset, c.split) for c in carved.cases]
  assert full.provenance == {**carved.provenance, "annotated": "in full"}
  with pytest.raises(InputError, match="no fully labelled case"):
    annotate_in_full(partial_labels_by_cases(folder([""] * 9, test=0)))
