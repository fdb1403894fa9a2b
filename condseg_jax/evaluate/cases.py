"""Labelled cases to score on, read one at a time: files on their native grid, or prepared ones."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from condseg_jax.data.pipeline import Dataset
from condseg_jax.data.prepare import sources
from condseg_jax.data.prepare.raw import RawCase
from condseg_jax.data.store import Case, Store
from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume

# The image, and annotated class → three-valued mask on its grid.
Labelled = tuple[Volume, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LabelledCase:
  """A case that can be scored.

  Attributes:
    id: unique among the cases scored together.
    read: reads image and masks.
    annotated: the classes that it has masks of.
  """

  id: str
  read: Callable[[], Labelled]
  annotated: tuple[str, ...] = ()


def stored_cases(datasets: Iterable[Dataset]) -> list[LabelledCase]:
  """The cases of prepared datasets."""
  return [_stored(d.store, case, f"{d.name}/{case.id}") for d in datasets for case in d.cases]


def labelled_cases(root, split: str = "") -> tuple[list[LabelledCase], str]:
  """The labelled cases under a path, raw ones on the grid of their files.

  Args:
    root: raw dataset, prepared store, or a folder of these.
    split: `train`, `val`, `test`; when empty `val` where some case is of it, else `test`, else all.

  Returns:
    The cases, and the split that was taken.

  Raises:
    InputError: nothing there, or nothing of that split.
  """
  found = [(folder, case) for folder in sources.find(root) for case in folder.cases]
  present = {case.split for _, case in found}
  taken = split or next((s for s in ("val", "test") if s in present), "all")
  chosen = [(f, c) for f, c in found if taken in ("all", c.split)]
  if not chosen:
    raise InputError(root, f"holds no case of the split {taken!r}",
                     f"there are: {', '.join(sorted(present))}", usage=True)
  several = len({str(f.root) for f, _ in chosen}) > 1
  cases = []
  for folder, case in chosen:
    case_id = f"{folder.root.name}/{case.id}" if several else case.id
    cases.append(_stored(folder, case, case_id) if isinstance(folder, Store) else
                 _raw(case, case_id))
  return cases, taken


def _raw(case: RawCase, case_id: str) -> LabelledCase:
  def read():
    volume, masks = case.read()
    return volume, dict(zip(case.classes, masks, strict=True))
  return LabelledCase(case_id, read, tuple(case.classes))


def _stored(store: Store, case: Case, case_id: str) -> LabelledCase:
  def read():
    masks = store.read_masks(case, case.annotated)
    return store.read_volume(case), dict(zip(case.annotated, masks, strict=True))
  return LabelledCase(case_id, read, tuple(case.annotated))
