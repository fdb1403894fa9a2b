"""Writes a store without masks that an audit found to be wrong.

    OUT/audit.json      run, and the masks that were left out; also in the manifest, under
                        recipe.audit
    OUT/…               a store as any other (`data.store`)

A mask that is left out is unlabelled everywhere: it teaches nothing, and its case stays in its
dataset. A case none of whose masks is left is an image without masks, in a dataset of its own.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
import os

from etils import epath
import numpy as np

from condseg_jax.classes import POSITIVE
from condseg_jax.classes import UNLABELLED
from condseg_jax.data.rewrite import Change
from condseg_jax.data.rewrite import constant
from condseg_jax.data.rewrite import rewrite
from condseg_jax.data.store import Case
from condseg_jax.data.store import Store
from condseg_jax.data.writer import Rows
from condseg_jax.evaluate.audit import Row
from condseg_jax.evaluate.audit import to_json
from condseg_jax.model_io.fold_run import FoldRun

RECORD = "audit.json"
BARE = "{}, masks left out"  # dataset of cases that keep none


def write_audited(store: Store, out: str | os.PathLike, run: FoldRun, dropped: Sequence[Row], *,
                  doubtful: bool = False) -> Store:
  """Writes a store without some masks; an interrupted call resumes.

  Args:
    store: the data.
    out: folder of the new store.
    run: the run that judged them.
    dropped: the masks to leave out; those of other stores are ignored.
    doubtful: leave out only the voxels where a mask and what was found in its case disagree.

  Raises:
    InputError: see `data.rewrite.rewrite`.
  """
  cases = {case.key: case for case in store.cases}
  chosen = sorted((row for row in dropped if row.case in cases), key=lambda row: row.case)
  changes = {}
  for key, rows in itertools.groupby(chosen, key=lambda row: row.case):
    case, names = cases[key], tuple(sorted(row.class_name for row in rows))
    bare = not doubtful and set(names) == set(case.annotated)
    what = f"{'doubtful' if doubtful else 'left out'}: {'/'.join(names)}"
    if doubtful:
      masks = functools.partial(_certain, store, case, names, run)
    else:
      masks = functools.partial(dict.fromkeys, names, constant(case, UNLABELLED))
    changes[key] = Change(masks, what, BARE.format(case.dataset) if bare else case.dataset,
                          annotated=not bare)
  record = {"run": str(epath.Path(run.folder).resolve()), "seed": run.seed, "folds": run.count,
            "voxels": "doubtful" if doubtful else "all", **to_json(chosen)}
  return rewrite(store, out, changes, RECORD, {"audit": record})


def _certain(store: Store, case: Case, names: Sequence[str], run: FoldRun) -> Mapping[str, Rows]:
  """Returns class → `Rows` of its mask, unlabelled where it and the finding disagree."""
  found = run.out_of_fold(case.key, case.shape)

  def rows_of(name: str, rows: slice) -> np.ndarray:
    mask = store.read_masks(case, [name], (rows,))[0]
    seen = found.label.array[rows] == found.names[name]
    mask[seen != (mask == POSITIVE)] = UNLABELLED
    return mask

  return {name: functools.partial(rows_of, name) for name in names}
