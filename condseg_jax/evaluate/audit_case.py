"""Compares the masks of one case with its out-of-fold prediction."""

import functools
from typing import NamedTuple

from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.evaluate.audit import compare
from condseg_jax.evaluate.audit import Disagreement
from condseg_jax.model_io.fold_run import FoldRun


class Audit(NamedTuple):
  """The common arguments of all cases: paths, which workers get with every case.

  Attributes:
    workdir: folder of the cross-validated run.
    command: unique to a call of a command, as the files may change between two.
  """

  workdir: str
  command: str


def compare_case(audit: Audit, root: str, case_id: str) -> list[Disagreement]:
  """Compares the masks of a case, those of classes that the run knows; see `audit.compare`.

  Args:
    audit: the run.
    root: folder of the store of the case.
    case_id: of the case in its store.

  Raises:
    InputError: the prediction is missing or damaged, or older than the data.
  """
  run = _run(audit)
  store, cases = _store(root, audit.command)
  case = cases[case_id]
  found = run.out_of_fold(case.key, case.shape)
  compared = []
  for name in filter(found.names.get, case.annotated):
    mask, = store.read_masks(case, [name])
    compared.append((case.key, name, *compare(mask, found.label.array, found.names, name,
                                              store.spacing)))
  return compared


@functools.lru_cache(maxsize=1)
def _run(audit: Audit) -> FoldRun:
  return FoldRun.open(audit.workdir)


@functools.lru_cache(maxsize=8)
def _store(root: str, command: str) -> tuple[Store, dict[str, Case]]:  # noqa: ARG001
  store = Store.open(root)
  return store, {case.id: case for case in store.cases}
