"""Checks a prepared store: every case whole, every array as it was written."""

import concurrent.futures
import json
import os

from etils import epath
import numpy as np
import tqdm

from condseg_jax.classes import ClassTable
from condseg_jax.data.store import Case
from condseg_jax.data.store import MANIFEST
from condseg_jax.data.store import Store
from condseg_jax.datasets.verify.findings import class_findings
from condseg_jax.datasets.verify.findings import ERROR
from condseg_jax.datasets.verify.findings import Finding
from condseg_jax.datasets.verify.findings import Measured
from condseg_jax.datasets.verify.findings import outlier_findings
from condseg_jax.datasets.verify.findings import Seen
from condseg_jax.datasets.verify.findings import training_findings
from condseg_jax.datasets.verify.findings import WARNING
from condseg_jax.errors import InputError

AGAIN = "run the same condseg-prepare again; it goes on where it stopped"


def is_store(path: epath.Path) -> bool:
  """Whether a folder is a prepared store, finished or not."""
  return (path / MANIFEST).exists() or (path / "cases").is_dir()


def check_store(root: epath.Path, *, progress: bool = True) -> tuple[list[Finding], list[Seen]]:
  """All findings of a store, and the images that were read.

  A case without a finding is whole: its record is there, and its arrays have the digests that the
  record gives.
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
      findings.append(Finding(ERROR, "unfinished", str(folder), "holds no case.json: it was not "
                              "written to its end", AGAIN))
      continue
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
      findings.append(Finding(ERROR, "damaged", str(folder / "case.json"),
                              f"is damaged ({type(error).__name__})", "remove the folder, then "
                              f"{AGAIN}"))
      continue
    if listed is not None and listed.get(case_id) != case:
      told = "is not in the manifest" if case_id not in listed else "differs from the manifest"
      findings.append(Finding(WARNING if case_id not in listed else ERROR, "stray", str(folder),
                              told, "remove the folder, or prepare again"))
      continue
    cases.append(case)
  with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
    results = pool.map(lambda case: _arrays(store, case), cases)
    for found in tqdm.tqdm(results, total=len(cases), desc=f"verifying {root.name}",
                           disable=not progress):
      findings += found
  names = dict.fromkeys(name for case in cases for name in case.annotated)
  findings += class_findings(root, {name: {case.id: case.positives[name] for case in cases
                                           if name in case.annotated} for name in names})
  findings += training_findings(root, [(case.split, case.annotated) for case in cases])
  for dataset in dict.fromkeys(case.dataset for case in cases):
    findings += outlier_findings([_measured(store, c) for c in cases if c.dataset == dataset])
  return findings, [Seen(case.image_sha256, case.split, str(root / "cases" / case.id))
                    for case in cases]


def _measured(store: Store, case: Case) -> Measured:
  known = store.modality == "ct" and case.intensities  # only CT has a unit
  return Measured(str(store.root / "cases" / case.id), case.native_spacing,
                  float(np.mean(case.intensities)) if known else float("nan"))


def _arrays(store: Store, case: Case) -> list[Finding]:
  folder = str(store.root / "cases" / case.id)
  try:
    if store.digest(case) == (case.image_sha256, case.sha256):
      return []
    reason = "its arrays are not those that were written"
  except InputError as error:
    reason = error.reason
  return [Finding(ERROR, "damaged", folder, reason, f"remove the folder, then {AGAIN}")]
