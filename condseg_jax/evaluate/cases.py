"""Labelled cases to score on, read one at a time from prepared stores."""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses

import numpy as np

from condseg_jax.data.selection import Dataset
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.geometry import Volume

# The image, and annotated class → three-valued mask on its grid.
Labelled = tuple[Volume, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LabelledCase:
  """A case that can be scored.

  Attributes:
    id: identifier, unique among the cases scored together.
    read: reads image and masks.
    annotated: the classes that it has masks for.
  """

  id: str
  read: Callable[[], Labelled]
  annotated: tuple[str, ...] = ()


def stored_cases(datasets: Iterable[Dataset]) -> list[LabelledCase]:
  """Returns the cases of prepared datasets."""
  return [stored_case(d.store, case, case.key) for d in datasets for case in d.cases]


def stored_case(store: Store, case: Case, case_id: str) -> LabelledCase:
  """Returns a case of a store under the given id."""
  def read():
    masks = store.read_masks(case, case.annotated)
    return store.read_volume(case), dict(zip(case.annotated, masks, strict=True))
  return LabelledCase(case_id, read, tuple(case.annotated))
