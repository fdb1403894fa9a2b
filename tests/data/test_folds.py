"""Folds: every case held out once, patients whole, everywhere the same."""

import collections
from types import SimpleNamespace

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from condseg_jax.data.folds import fold
from condseg_jax.data.folds import split
from condseg_jax.data.selection import Dataset
from condseg_jax.errors import InputError


def dataset(name, patients, root="store"):
  """A dataset with a case for every entry of `patients`; its ids are unique in the store."""
  cases = tuple(SimpleNamespace(id=f"{name}_{chr(97 + i)}", key=f"{name}/{name}_{chr(97 + i)}",
                                patient=patient) for i, patient in enumerate(patients))
  return Dataset(name, SimpleNamespace(root=root), cases)


PATIENTS = st.lists(st.sampled_from(["", "p", "q", "r", "s", "t"]), min_size=8, max_size=20)


@given(a=PATIENTS, b=PATIENTS, folds=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_patients_are_whole_and_every_case_is_held_out_once(a, b, folds, seed):
  both = [dataset("a", a), dataset("b", b)]
  try:
    places = split(both, folds, seed)
  except InputError as error:
    assert min(len({*p, *range(p.count(""))} - {""}) for p in (a, b)) < folds or (
        "in one fold" in str(error))
    return
  cases = {case.key: case for d in both for case in d.cases}
  assert set(places) == set(cases)
  members = [fold(places, n) for n in range(folds)]
  assert sorted(key for m in members for key in m.held_out) == sorted(cases)
  for member in members:
    assert member.training | member.held_out == set(cases)
    trained, unseen = ({cases[key].patient for key in keys} - {""} for keys in member)
    assert trained.isdisjoint(unseen), "the same patient in two datasets counts, too"
  assert split(both, folds, seed) == places


def test_equal_numbers_in_every_dataset():
  both = [dataset("a", [""] * 11), dataset("b", [""] * 7)]
  places = split(both, 3, 0)
  for name, sizes in (("a", [3, 4, 4]), ("b", [2, 2, 3])):
    counts = collections.Counter(p.fold for key, p in places.items() if key.startswith(name))
    assert sorted(counts.values()) == sizes
  assert places != split(both, 3, 1)


def test_a_store_without_patients_takes_them_from_the_ids():
  """`None` is not recorded, "" is one of its own."""
  def place(patient):
    cases = tuple(SimpleNamespace(id=f"liver_{n}_{i}", key=f"a/liver_{n}_{i}", patient=patient)
                  for n in range(3) for i in range(2))
    return [p.patient for p in split([Dataset("a", SimpleNamespace(root="s"), cases)], 2,
                                     0).values()]
  assert place(None) == ["liver_0"] * 2 + ["liver_1"] * 2 + ["liver_2"] * 2
  assert len(set(place(""))) == 6


def test_equal_names_in_two_stores_are_two_patients():
  places = split([dataset("a", ["p", "q"], "x"), dataset("b", ["p", "q"], "y")], 2, 0)
  assert len({place.patient for place in places.values()}) == 4


def test_refused():
  with pytest.raises(InputError, match="'a' has 2 patients for 3 folds"):
    split([dataset("a", ["p", "p", "q"])], 3, 0)
  with pytest.raises(InputError, match="at least 2"):
    split([dataset("a", ["p", "q"])], 1, 0)
  with pytest.raises(InputError, match="is the name of two cases"):
    split([dataset("a", ["p", "q"], "x"), dataset("a", ["p", "q"], "y")], 2, 0)
  first = dataset("a", ["p", "p2", "q", "r"])
  places = split([first], 2, 0)
  together = [case.patient for case in first.cases if places[case.key].fold == 0]
  with pytest.raises(InputError, match="'b' are in one fold"):
    split([first, dataset("b", together)], 2, 0)
