"""Writes stores again, with pseudo-masks beside the annotated ones.

    OUT/pseudo.json     run, thresholds and competences; also in the manifest, under recipe.pseudo
    OUT/…               a store as any other (`data.store`); `Case.pseudo` names the classes with a
                        pseudo-mask
"""

from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import Executor
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging

from etils import epath
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import POSITIVE
from condseg_jax.data import rewrite
from condseg_jax.data.store import Case
from condseg_jax.data.store import MANIFEST
from condseg_jax.data.store import slabs
from condseg_jax.data.store import Store
from condseg_jax.data.writer import finished_case
from condseg_jax.data.writer import Rows
from condseg_jax.errors import InputError
from condseg_jax.geometry import voxel_ml
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.pseudo import rules as rules_lib
from condseg_jax.pseudo.rules import Competence
from condseg_jax.pseudo.rules import Rules
from condseg_jax.pseudo.sources import check_data
from condseg_jax.pseudo.sources import load_source
from condseg_jax.pseudo.sources import OneNetwork
from condseg_jax.pseudo.sources import origin
from condseg_jax.pseudo.sources import probabilities
from condseg_jax.pseudo.sources import Reader
from condseg_jax.pseudo.sources import sources
from condseg_jax.system.atomic import write_text
from condseg_jax.system.lock import held

RECORD = "pseudo.json"
WORKERS = 4  # threads for the slabs of a case

log = logging.getLogger("condseg_jax")


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Everything that decides about pseudo-masks.

  Attributes:
    run: the networks, see `pseudo.sources`.
    table: their classes.
    found: class → its competence.
    rules: the thresholds.
  """

  run: FoldRun | OneNetwork
  table: ClassTable
  found: Mapping[str, Competence]
  rules: Rules

  def candidates(self, case: Case) -> list[str]:
    """Returns the classes that join and that a case does not annotate."""
    return [name for name, found in self.found.items()
            if found.joins and name not in case.annotated]

  def to_json(self) -> dict:
    """Returns the record, JSON-compatible."""
    return json.loads(json.dumps({
        **origin(self.run), **dataclasses.asdict(self.rules),
        "overlapping": self.table.overlapping,
        "classes": {name: dataclasses.asdict(c) for name, c in self.found.items()}}))


def make_teacher(workdir, stores: Sequence[Store], rules: Rules) -> Teacher:
  """Opens a run and decides which classes join.

  Args:
    workdir: folder of the cross-validated run.
    stores: all data it was trained on, with further images or without.
    rules: the thresholds.

  Raises:
    InputError: see `sources.check_data`; no class joins, or none is missing in any image.
  """
  run = FoldRun.open(workdir)
  record = check_data(run, stores)
  cases = [case for store in stores for case in store.cases if case.split == "train"]
  found = rules_lib.competences(record.table.names, run.scores, cases, rules)
  teacher = Teacher(run, record.table, found, rules)
  if not any(c.joins for c in found.values()):
    raise InputError("competence", f"no class reaches a cross-validated Dice of "
                     f"{rules.competence:g} in {run.folder}", "train longer, or lower it",
                     usage=True)
  if not any(teacher.candidates(case) for case in cases):
    raise InputError("data", "every image annotates every class that joins", "add images that do "
                     "not", usage=True)
  return teacher


def write_store(teacher: Teacher, store: Store, out) -> Store:
  """Writes a store with pseudo-masks; finished cases are kept.

  Cases for training get masks of the classes that join and that they do not annotate, unless the
  volume is outside the range of true masks. All others are copied.

  Args:
    teacher: decides.
    store: the data.
    out: folder of the new store.

  Raises:
    InputError: `out` holds other data, those of other settings, or masks older than the data.
  """
  out, source_of = epath.Path(out), sources(teacher.run, store)
  with held(out):
    finished = _begun(teacher, store, out)
    cases = list(finished.values())
    todo = [case for case in store.cases if case.id not in finished]
    todo.sort(key=lambda case: str(source_of.get(case.id)))  # so that each is loaded once
    load = functools.lru_cache(1)(functools.partial(load_source, teacher.run))
    with ThreadPoolExecutor(WORKERS) as pool:
      for number, case in enumerate(todo, 1):
        log.info("case %d of %d: %s", number, len(todo), case.id)
        cases.append(_write(teacher, store, case, source_of.get(case.id), out, load, pool))
    if not todo and (out / MANIFEST).exists():
      return Store.open(out)
    return rewrite.finish(store, out, cases, {"pseudo": teacher.to_json()})


def _begun(teacher: Teacher, store: Store, out: epath.Path) -> dict[str, Case]:
  """Returns the finished cases in `out`, after checks, and writes the record."""
  record = out / RECORD
  if not record.exists():
    if (out / MANIFEST).exists() or (out / "cases").exists():
      raise InputError(out, "holds other data", "choose another `out`", usage=True)
  finished = {}
  for case in store.cases:
    found = finished_case(out, case.id, _source(case))
    path = out / "cases" / case.id / "case.json"
    if found is not None:
      finished[case.id] = found
    elif path.exists() and _recorded_source(path) not in ("", _source(case)):
      raise InputError(out, f"holds pseudo-masks older than the data: {case.id} has changed since",
                       "remove the folder, or choose another `out`", usage=True)
  if record.exists() and not _is_of(teacher, record):
    raise InputError(out, "was begun with another run or other thresholds",
                     "remove the folder, or choose another `out`", usage=True)
  write_text(record, json.dumps(teacher.to_json(), indent=1))
  return finished


def _is_of(teacher: Teacher, record: epath.Path) -> bool:
  """Returns whether a record is that of a teacher, wherever its run lies now."""
  try:
    return {**json.loads(record.read_text(encoding="utf-8")), "run": ""} == {
        **teacher.to_json(), "run": ""}
  except (ValueError, TypeError):
    return False


def _source(case: Case) -> str:
  """Returns what a written case has as `Case.source`: it depends on image and true masks."""
  return hashlib.sha256(f"{case.source}/{case.sha256}/{case.split}".encode()).hexdigest()


def _recorded_source(path: epath.Path) -> str:
  """Returns the source in a record; "" if it is damaged, and its case is written again."""
  try:
    return str(json.loads(path.read_text(encoding="utf-8"))["source"])
  except (ValueError, KeyError, TypeError):
    return ""


def _write(teacher: Teacher, store: Store, case: Case, source: int | None, out: epath.Path,
           load, pool: Executor) -> Case:
  names = teacher.candidates(case) if case.split == "train" else []
  with contextlib.ExitStack() as stack:
    rows_of: dict[str, Rows] = {}
    if names:
      read = stack.enter_context(probabilities(teacher.run, store, case, source, load))
      rows_of = _accepted(teacher, store, case, names, read)
    facts = rewrite.facts_of(case, _source(case))._replace(pseudo=tuple(rows_of))
    true = {name: rewrite.stored_mask(store, case, name) for name in case.annotated}
    return rewrite.write_again(store, case, facts, (true | rows_of).items(), out, pool)


def _accepted(teacher: Teacher, store: Store, case: Case, names: Sequence[str],
              read: Reader) -> dict[str, Rows]:
  """Returns class → `Rows` of its pseudo-mask, for classes whose volume is that of a true mask."""
  exclusive, index = teacher.table.exclusive, teacher.table.index
  voxel = voxel_ml(np.asarray(case.affine))

  def found(name: str, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probability, rivals and excluded voxels, see `rules.pseudo_mask`."""
    excludes = lambda other: exclusive[index(name), index(other)]
    probability = read(name, (rows,))
    rivals = np.zeros_like(probability)
    for other in filter(excludes, names):
      rivals = np.maximum(rivals, read(other, (rows,)))
    annotated = [other for other in case.annotated if excludes(other)]
    excluded = np.zeros(probability.shape, bool)
    for other in annotated:
      excluded |= store.read_masks(case, [other], (rows,))[0] == POSITIVE
    return probability, rivals, excluded

  def mask(name: str, rows: slice) -> np.ndarray:
    return rules_lib.pseudo_mask(*found(name, rows), teacher.rules)

  def volume_ml(name: str) -> float:
    return voxel * sum(int(rules_lib.is_positive(*found(name, rows), 0.5).sum())
                       for rows in slabs(case.shape))

  accepted: dict[str, Rows] = {}
  for name in names:
    volume = volume_ml(name)
    if teacher.found[name].accepts(volume):
      accepted[name] = functools.partial(mask, name)
    else:
      log.info("%s: %s of %.3g ml is left unlabelled, outside of true volumes", case.id, name,
               volume)
  return accepted
