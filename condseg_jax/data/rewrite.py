"""Writes a store again with other masks in some of its cases.

Cases that stay as they are share their files with the first store, by hard links: files of a store
are replaced, never changed.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import Executor
from concurrent.futures import ThreadPoolExecutor
import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import NamedTuple
import uuid

from etils import epath
import numpy as np

from condseg_jax.data.store import Case
from condseg_jax.data.store import clear_array_cache
from condseg_jax.data.store import MANIFEST
from condseg_jax.data.store import Store
from condseg_jax.data.writer import CaseFacts
from condseg_jax.data.writer import finished_case
from condseg_jax.data.writer import Rows
from condseg_jax.data.writer import write_case
from condseg_jax.data.writer import write_manifest
from condseg_jax.errors import InputError
from condseg_jax.geometry import Geometry
from condseg_jax.system.atomic import write_text
from condseg_jax.system.lock import held

WORKERS = 4  # threads for the slabs of a case


class Change(NamedTuple):
  """What becomes of a case.

  Attributes:
    masks: makes annotated class → `Rows` of its new mask, when the case is written; masks of other
      classes stay.
    what: describes the change, for `Case.source`.
    dataset: of the case.
    annotated: whether it still annotates anything; if not, all annotated masks are left out.
  """

  masks: Callable[[], Mapping[str, Rows]]
  what: str
  dataset: str
  annotated: bool = True


def rewrite(store: Store, out, changes: Mapping[str, Change], record: str,
            provenance: Mapping[str, object]) -> Store:
  """Writes a store again; finished cases are kept, so that an interrupted call resumes.

  Args:
    store: the data.
    out: folder of the new store.
    changes: `Case.key` → its change; all other cases stay as they are.
    record: name of the file in `out` that says what is written there, from the beginning on.
    provenance: added to that of the store; the content of the record.

  Raises:
    InputError: `out` holds other data, or was begun with another provenance.
  """
  out = epath.Path(out)
  text = json.dumps(provenance, indent=1)
  with held(out):
    if not (out / record).exists():
      if (out / MANIFEST).exists() or (out / "cases").exists():
        raise InputError(out, "holds other data", "choose another `out`", usage=True)
      write_text(out / record, text)
    elif (out / record).read_text(encoding="utf-8") != text:
      raise InputError(out, "was begun with another choice, or another run",
                       "remove the folder, or choose another `out`", usage=True)
    cases = []
    with ThreadPoolExecutor(WORKERS) as pool:
      for case in store.cases:
        change = changes.get(case.key)
        source = case.source if change is None else _source(case, change)
        found = finished_case(out, case.id, source)
        if change is None:
          same = found is not None and found.sha256 == case.sha256
          found = case if same or _linked(store, case, out) else None
        cases.append(found or _write(store, case, change, source, out, pool))
    return finish(store, out, cases, provenance)


def _source(case: Case, change: Change) -> str:
  parts = (case.source, case.sha256, case.split, change.what, change.dataset)
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _linked(store: Store, case: Case, out: epath.Path) -> bool:
  """Gives the files of a case a second name; returns False for buckets, where there are none."""
  if "://" in f"{store.root}{out}":
    return False
  target = Path(out) / "cases" / case.id
  part = target.with_name(f".{uuid.uuid4().hex}")  # the case appears whole or not at all
  (Path(out) / MANIFEST).unlink(missing_ok=True)
  shutil.rmtree(target, ignore_errors=True)
  clear_array_cache()
  try:
    shutil.copytree(store.root / "cases" / case.id, part, copy_function=_link_or_copy)
    part.rename(target)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return True


def _link_or_copy(source: str, target: str) -> None:
  try:
    os.link(source, target)
  except OSError:  # another file system, or one without links
    shutil.copyfile(source, target)


def _write(store: Store, case: Case, change: Change | None, source: str, out: epath.Path,
           pool: ThreadPoolExecutor) -> Case:
  """Writes a case with its change."""
  facts = facts_of(case, source)
  masks = {name: stored_mask(store, case, name) for name in case.masked}
  if change is not None:
    facts = facts._replace(dataset=change.dataset)
    if change.annotated:
      masks |= change.masks()
    else:
      facts = facts._replace(annotated=())
      masks = {name: masks[name] for name in case.pseudo}
  return write_again(store, case, facts, masks.items(), out, pool)


# --- what all stores that are written again share -------------------------------------------------
def facts_of(case: Case, source: str) -> CaseFacts:
  """Returns what is recorded of a case, with another `Case.source`."""
  return CaseFacts(case.id, case.dataset, case.split, case.annotated,
                   Geometry(case.native_shape, np.diag([*case.native_spacing, 1.0])), source,
                   case.patient, tuple(case.pseudo))


def stored_mask(store: Store, case: Case, name: str) -> Rows:
  """Returns the `Rows` of a mask as it is stored."""
  return lambda rows: store.read_masks(case, [name], (rows,))[0]


def write_again(store: Store, case: Case, facts: CaseFacts, masks: Iterable[tuple[str, Rows]],
                out: epath.Path, pool: Executor) -> Case:
  """Writes the image of a case and some masks to another store."""
  image = lambda rows: store.read_image(case, (rows,))
  first = image(slice(0, 1))
  return write_case(out, facts, Geometry(case.shape, np.asarray(case.affine)),
                    contextlib.nullcontext(image), masks, channels=first.shape[-1],
                    dtype=first.dtype, pool=pool)


def finish(store: Store, out: epath.Path, cases: Sequence[Case],
           provenance: Mapping[str, object]) -> Store:
  """Writes what belongs to a store as a whole, when its cases are written."""
  fingerprint = store.root / "fingerprint.json"
  if fingerprint.exists():
    write_text(out / fingerprint.name, fingerprint.read_text())
  return write_manifest(out, modality=store.modality, spacing=store.spacing, table=store.table,
                        cases=cases, provenance={**store.provenance, **provenance})


def constant(case: Case, value: int) -> Rows:
  """Returns the `Rows` of a mask of one value."""
  return functools.partial(_filled, case.shape[1:], value)


def _filled(shape: tuple[int, ...], value: int, rows: slice) -> np.ndarray:
  return np.full((rows.stop - rows.start, *shape), value, np.uint8)
