"""Checks a prepared store: every case is complete, every array is as it was written."""

import dataclasses
import json

from etils import epath
import numpy as np
import tqdm

from condseg_jax.classes import ClassTable
from condseg_jax.cluster.tasks import Cluster
from condseg_jax.data.store import Case
from condseg_jax.data.store import MANIFEST
from condseg_jax.data.store import Store
from condseg_jax.datasets.verify.findings import CaseStatistics
from condseg_jax.datasets.verify.findings import class_findings
from condseg_jax.datasets.verify.findings import ERROR
from condseg_jax.datasets.verify.findings import Finding
from condseg_jax.datasets.verify.findings import ImageRecord
from condseg_jax.datasets.verify.findings import outlier_findings
from condseg_jax.datasets.verify.findings import training_findings
from condseg_jax.datasets.verify.findings import WARNING
from condseg_jax.datasets.verify.map_cases import map_cases
from condseg_jax.errors import InputError

WORKERS = 4  # maximal number of cases that are read at a time
AGAIN = "run the same condseg-prepare command again; it resumes"


def is_store(path: epath.Path) -> bool:
  """Returns whether a folder is a prepared store, complete or not."""
  return (path / MANIFEST).exists() or (path / "cases").is_dir()


def check_store(root: epath.Path, *, progress: bool = True,
                cluster: Cluster | None = None) -> tuple[list[Finding], list[ImageRecord]]:
  """Checks a store.

  A case without a finding is complete: its record exists, and its arrays match the digests in the
  record.

  Returns:
    The findings, and the images that were read.
  """
  findings, listed = [], None
  try:
    store = Store.open(root)
    listed = {case.id: case for case in store.cases}
  except InputError as error:
    kind = "damaged" if (root / MANIFEST).exists() else "unfinished"
    findings.append(Finding(ERROR, kind, str(root), error.reason, AGAIN))
    store = Store(root, "", (), ClassTable(()), ())
  cases = []
  folders = {p.name: p for p in sorted((root / "cases").glob("*")) if p.is_dir()}
  for case_id in sorted(set(folders) | set(listed or ())):
    folder = root / "cases" / case_id
    try:
      case = Case.from_json(json.loads((folder / "case.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
      findings.append(Finding(ERROR, "unfinished", str(folder),
                              "is incomplete: case.json is missing", AGAIN))
      continue
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
      findings.append(Finding(ERROR, "damaged", str(folder / "case.json"),
                              f"is damaged ({type(error).__name__})", "remove the folder, then "
                              f"{AGAIN}"))
      continue
    if listed is not None and listed.get(case_id) != case:
      unlisted = case_id not in listed
      findings.append(Finding(
          WARNING if unlisted else ERROR, "stray", str(folder),
          "is not in the manifest" if unlisted else "differs from the manifest",
          "remove the folder, or prepare again"))
      continue
    cases.append(case)
  alone = dataclasses.replace(store, cases=())
  results = map_cases(check_arrays, [(alone, case) for case in cases],
                      [str(root / "cases" / case.id) for case in cases], WORKERS, cluster)
  for outcome in tqdm.tqdm(results, total=len(cases), desc=f"verifying {root.name}",
                           disable=not progress):
    if isinstance(outcome.error, InputError):  # it ends the process that reads it
      findings.append(Finding.of(outcome.error))
    elif outcome.error is not None:
      raise outcome.error
    else:
      findings += outcome.value
  names = dict.fromkeys(name for case in cases for name in case.annotated)
  findings += class_findings(root, {name: {case.id: case.positives[name] for case in cases
                                           if name in case.annotated} for name in names})
  findings += training_findings(root, [(case.split, case.annotated) for case in cases])
  for dataset in dict.fromkeys(case.dataset for case in cases):
    findings += outlier_findings([_statistics(store, c) for c in cases if c.dataset == dataset])
  return findings, [ImageRecord(case.image_sha256, case.split, str(root / "cases" / case.id))
                    for case in cases]


def _statistics(store: Store, case: Case) -> CaseStatistics:
  known = store.modality == "ct" and case.intensities  # only CT intensities have a unit
  return CaseStatistics(str(store.root / "cases" / case.id), case.native_spacing,
                        float(np.mean(case.intensities)) if known else float("nan"))


def check_arrays(store: Store, case: Case) -> list[Finding]:
  """Compares the arrays of a case with its digests; the other cases of the store do not matter."""
  folder = str(store.root / "cases" / case.id)
  try:
    if store.digest(case) == (case.image_sha256, case.sha256):
      return []
    reason = "its arrays have changed since they were written"
  except InputError as error:
    reason = error.reason
  return [Finding(ERROR, "damaged", folder, reason, f"remove the folder, then {AGAIN}")]
