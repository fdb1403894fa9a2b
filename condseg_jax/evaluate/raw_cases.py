"""Labelled cases under a path: raw files on their native grid, or prepared cases."""

from condseg_jax.data.store import Store
from condseg_jax.datasets import discover
from condseg_jax.datasets.raw import RawCase
from condseg_jax.errors import InputError
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.cases import stored_case


def labelled_cases(root, split: str = "") -> tuple[list[LabelledCase], str]:
  """Returns the labelled cases under a path; raw cases stay on their native grid.

  Args:
    root: raw dataset, prepared store, or a folder of these.
    split: `train`, `val` or `test`; when empty, `val` if it has cases, else `test`, else all.

  Returns:
    The cases, and the split that was chosen.

  Raises:
    InputError: no cases found, or none in that split.
  """
  found = [(folder, case) for folder in discover.discover(root) for case in folder.cases]
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
    cases.append(stored_case(folder, case, case_id) if isinstance(folder, Store) else
                 _raw(case, case_id))
  return cases, taken


def _raw(case: RawCase, case_id: str) -> LabelledCase:
  def read():
    volume, masks = case.read()
    return volume, dict(zip(case.classes, masks, strict=True))
  return LabelledCase(case_id, read, tuple(case.classes))
