"""The cases of a run as they come, under names that give nobody away, within what a page holds."""

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
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.formats import files
from condseg_jax.geometry import Volume
from condseg_jax.predictor import Prediction
from condseg_jax.predictor import Predictor
from condseg_jax.report.page.case import Case
from condseg_jax.report.page.case import draw_case
from condseg_jax.report.page.case import Measures
from condseg_jax.report.page.case import structure_sizes
from condseg_jax.report.page.write import write_page

BUDGET = 200_000_000  # bytes of scans in one page; browsers open that within seconds
_FULL = "not in the viewer: the scans of other cases fill this page"
_SCORES = ("dice", "iou", "hd95", "surface_dice", "volume_ml", "truth_volume_ml", "area_px",
           "truth_area_px")


def case_names(names: Sequence[str], shown: bool) -> list[str]:
  """The names of cases on a page: the given ones if `shown`, else their numbers in the order given.

  Names of files are often names of patients, and a page is easily passed on.
  """
  return list(names) if shown else [f"case {number}" for number in range(1, len(names) + 1)]


def predicted_case(name: str, volume: Volume, prediction: Prediction, predictor: Predictor, *,
                   statistics: Measures | None = None, warnings: Sequence[str] = ()) -> Case:
  """A new image with what was found in it.

  Args:
    name: as it is to be shown.
    volume, prediction, predictor: the image, and what found what.
    statistics: structure → measures; sizes counted in the label map when None.
    warnings: lines for the reader.
  """
  if statistics is None:
    statistics = structure_sizes(prediction.label, prediction.names)
  return draw_case(name, volume, prediction.label, predictor.table, statistics,
                   modality=predictor.plan.modality, warnings=warnings)


def scored_case(name: str, volume: Volume, prediction: Prediction, predictor: Predictor,
                truth: Mapping[str, np.ndarray], rows: Iterable[CaseScore]) -> Case:
  """A labelled case with its scores.

  Args:
    name: as it is to be shown.
    volume, prediction, predictor: the image, and what found what.
    truth: annotated class → three-valued mask.
    rows: the scores of this case.
  """
  scores = {row.class_name: {key: row.metrics[key] for key in _SCORES if key in row.metrics}
            for row in rows}
  return draw_case(name, volume, prediction.label, predictor.table, scores,
                   modality=predictor.plan.modality, truth=truth, masks=prediction.masks)


def watch(predictor: Predictor, ids: Sequence[str],
          shown: bool) -> tuple[list[Case], Callable[..., None]]:
  """A list that fills as `evaluate` goes through cases, and the `seen` to give to it."""
  names = dict(zip(ids, case_names(ids, shown), strict=True))
  cases = []

  def seen(case_id, volume, prediction, truth, rows):
    add(cases, scored_case(names[case_id], volume, prediction, predictor, truth, rows))
  return cases, seen


def earlier_case(name: str) -> Case:
  """A case that was done before, by a run that went on here."""
  return Case(name, failure="segmented in an earlier run, which this one went on from: it is not "
              "looked at again")


def failed_case(name: str, error: InputError, path: str | os.PathLike, shown: bool) -> Case:
  """A case without a result; unless `shown`, whatever names its file is taken out of the reason."""
  return Case(name, failure=error.reason if shown else without_names(error.reason, path))


def without_names(text: str, path: str | os.PathLike) -> str:
  """A text with every mention of a file, or of the folder it lies in, replaced."""
  path = Path(path)
  folder = path.parent.absolute()
  slices = sorted((p.name for p in path.iterdir()), key=len, reverse=True) if path.is_dir() else ()
  for mention in (*slices, str(path), str(path.absolute()), str(folder), path.name,
                  files.stem(path)):
    if len(mention) > 1:
      text = text.replace(mention, "(file)")
  return text


def add(cases: list[Case], case: Case, budget: int = BUDGET) -> None:
  """Appends a case, and takes scans away until those of all cases are within a budget in bytes.

  Scored cases lose them from the middle of the ranking, so that the best and the worst keep theirs;
  others from the end.
  """
  cases.append(case)
  while sum(c.scan.size for c in cases if c.scan) > budget:
    holding = [i for i, c in enumerate(cases) if c.scan]
    scored = [i for i in holding if not math.isnan(cases[i].dice)]
    ranking = sorted(scored, key=lambda i: cases[i].dice) or [holding[-1]]
    chosen = ranking[len(ranking) // 2]
    cases[chosen] = dataclasses.replace(cases[chosen], scan=None, unseen=_FULL)


def write_report(path: str | os.PathLike, cases: Sequence[Case], predictor: Predictor,
                 summary: Mapping | None = None, *, split: str = "") -> str:
  """Writes the page of a run and returns what to print about it.

  Args:
    path: file to write.
    cases: as they came.
    predictor: what segmented them.
    summary: of their scores, where they were scored.
    split: that they are of.
  """
  number = f"{len(cases)} case" + ("" if len(cases) == 1 else "s")
  facts = {"date": datetime.date.today().isoformat()}
  facts |= {"split": split} if split else {}
  facts |= {"network": f"step {predictor.step:,}, {len(predictor.table)} structures"}
  title = f"Evaluation on {number}" if summary else f"Segmentation of {number}"
  note = write_page(path, cases, predictor.table, title=title, facts=facts, summary=summary)
  return f"report: {path}" + (f"  ({note})" if note else "")
