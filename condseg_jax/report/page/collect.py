"""Collects the cases of a run for the report page, de-identified and within a size limit."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import datetime
import math
import os
from pathlib import Path

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.metrics import METRICS
from condseg_jax.predictor import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.report.page.case import Case
from condseg_jax.report.page.case import draw_case
from condseg_jax.report.page.case import Measures
from condseg_jax.report.page.case import structure_sizes
from condseg_jax.report.page.write import write_page

BUDGET = 200_000_000  # bytes of scans in one page, which browsers open within seconds
_FULL = "not in the viewer: the size limit of the page is reached"
_SIZES = ("volume_ml", "truth_volume_ml", "area_px", "truth_area_px")


def case_names(names: Sequence[str], show_names: bool) -> list[str]:
  """Returns the displayed names of cases: the given ones if `show_names`, else their numbers.

  File names often contain patient names, and a page is easily passed on.
  """
  if show_names:
    return list(map(printable, names))
  return [f"case {number}" for number in range(1, len(names) + 1)]


def predicted_case(name: str, volume: Volume, prediction: Prediction, predictor: Predictor, *,
                   statistics: Measures | None = None, warnings: Sequence[str] = ()) -> Case:
  """Renders a segmented image.

  Args:
    name: displayed name.
    volume: the image.
    prediction: its segmentation.
    predictor: the network that made it.
    statistics: structure → measures; sizes in the label map when None.
    warnings: displayed lines.
  """
  if statistics is None:
    statistics = structure_sizes(prediction.label, prediction.names)
  return draw_case(name, volume, prediction.label, predictor.table, statistics,
                   modality=predictor.plan.modality, warnings=warnings)


def scored_case(name: str, volume: Volume, prediction: Prediction, predictor: Predictor,
                truth: Mapping[str, np.ndarray], rows: Iterable[CaseScore]) -> Case:
  """Renders a labelled case with its scores.

  Args:
    name: displayed name.
    volume: the image.
    prediction: its segmentation.
    predictor: the network that made it.
    truth: annotated class → three-valued mask.
    rows: scores of this case.
  """
  keys = (*METRICS, *_SIZES)
  scores = {row.class_name: {key: row.metrics[key] for key in keys if key in row.metrics}
            for row in rows}
  return draw_case(name, volume, prediction.label, predictor.table, scores,
                   modality=predictor.plan.modality, truth=truth, masks=prediction.masks)


def watch(predictor: Predictor, ids: Sequence[str],
          show_names: bool) -> tuple[list[Case], Callable[..., None]]:
  """Collects the cases of an evaluation.

  Args:
    predictor: the network.
    ids: of all cases.
    show_names: display the ids instead of numbers.

  Returns:
    A list that fills during the evaluation, and the `on_case` callback for `evaluate`.
  """
  names = dict(zip(ids, case_names(ids, show_names), strict=True))
  cases = []

  def on_case(case_id, volume, prediction, truth, rows):
    add(cases, scored_case(names[case_id], volume, prediction, predictor, truth, rows))
  return cases, on_case


def earlier_case(name: str) -> Case:
  """Returns a case that an earlier, continued run has segmented."""
  return Case(name, failure="segmented in an earlier run, not shown here")


def unshown_case(name: str) -> Case:
  """Returns a case that is segmented, but could not be drawn."""
  return Case(name, failure="segmented, but cannot be shown here")


def failed_case(name: str, error: InputError, path: str | os.PathLike, show_names: bool) -> Case:
  """Returns a case without a result; file names are removed from the reason unless `show_names`."""
  return Case(name, failure=error.reason if show_names else without_names(error.reason, path))


def without_names(text: str, path: str | os.PathLike) -> str:
  """Replaces every mention of a file, its folder, or the slices of a DICOM folder in a message."""
  path = Path(path)
  folder = path.parent.absolute()
  slices = sorted((p.name for p in path.iterdir()), key=len, reverse=True) if path.is_dir() else ()
  for mention in (*slices, str(path), str(path.absolute()), str(folder), path.name,
                  files.stem(path)):
    if len(mention) > 1:
      text = text.replace(printable(mention), "(file)")  # as in an InputError
  return text


def add(cases: list[Case], case: Case, budget: int = BUDGET) -> None:
  """Appends a case, and drops scans until those of all cases fit the budget.

  Of scored cases, those in the middle of the ranking lose their scan first, so that the best and
  the worst keep theirs; otherwise the last.

  Args:
    cases: modified in place.
    case: to append.
    budget: in bytes.
  """
  cases.append(case)
  while sum(c.scan.size for c in cases if c.scan) > budget:
    holding = [i for i, c in enumerate(cases) if c.scan]
    scored = [i for i in holding if not math.isnan(cases[i].dice)]
    ranking = sorted(scored, key=lambda i: cases[i].dice) or [holding[-1]]
    chosen = ranking[len(ranking) // 2]
    cases[chosen] = dataclasses.replace(cases[chosen], scan=None, no_scan=_FULL)


def write_report(path: str | os.PathLike, cases: Sequence[Case], predictor: Predictor,
                 summary: Mapping | None = None, *, split: str = "") -> str:
  """Writes the page of a run.

  Args:
    path: file to write.
    cases: in the order of the run.
    predictor: the network that segmented them.
    summary: of their scores, from `scores.summarise`; None without scores.
    split: of the dataset.

  Returns:
    A line to print about the page.

  Raises:
    InputError: the file cannot be written.
  """
  number = f"{len(cases)} case" + ("" if len(cases) == 1 else "s")
  facts = {"date": datetime.date.today().isoformat()}
  facts |= {"split": split} if split else {}
  facts |= {"network": f"step {predictor.step:,}, {len(predictor.table)} structures"}
  title = f"Evaluation on {number}" if summary else f"Segmentation of {number}"
  note = write_page(path, cases, predictor.table, title=title, facts=facts, summary=summary)
  return f"report: {path}" + (f"  ({note})" if note else "")
