"""Scores one case for `cli.evaluate`, in the process of the command or in a worker."""

from __future__ import annotations

from collections.abc import Mapping
import functools
from pathlib import Path
from typing import NamedTuple
from typing import TYPE_CHECKING

from condseg_jax.cli.network import Network
from condseg_jax.evaluate.cases import LabelledCase
from condseg_jax.evaluate.raw_cases import labelled_cases
from condseg_jax.evaluate.run import evaluate
from condseg_jax.report.page import collect

if TYPE_CHECKING:
  from condseg_jax.evaluate.scores import CaseScore
  from condseg_jax.report.page.case import Case


class Job(NamedTuple):
  """The common arguments of all cases: paths and settings, which workers get with every case.

  Attributes:
    network: what is loaded.
    step: its training step.
    data, split, tolerance_mm, fusion, report: the flags, with the split that was chosen.
  """

  network: Network
  step: int
  data: str
  split: str
  tolerance_mm: float
  fusion: str
  report: bool

  def cases(self) -> Mapping[str, LabelledCase]:
    """Returns the cases by their ids, which a process lists once."""
    return _cases(self.data, self.split, self.network.command)


class Scored(NamedTuple):
  """The scores of a case, and its part of the page if there is one."""

  rows: list[CaseScore]
  page: Case | None


def score(job: Job, case_id: str, name: str) -> Scored:
  """Scores a case; `name` is its name on the page."""
  predictor, page = job.network.load(job.step), None

  def on_case(_, volume, prediction, truth, rows) -> None:
    nonlocal page
    page = collect.scored_case(name, volume, prediction, predictor, truth, rows)

  rows = evaluate(predictor, [job.cases()[case_id]], tolerance_mm=job.tolerance_mm,
                  fusion=job.fusion, on_case=on_case if job.report else None)
  return Scored(rows, page)


def draw(job: Job, case_id: str, path: Path, title: str) -> None:
  """Draws a case, beside its truth."""
  from condseg_jax.report.figures import draw_prediction
  predictor = job.network.load(job.step)
  volume, truth = job.cases()[case_id].read()
  label = predictor.predict(volume, fusion=job.fusion).label
  draw_prediction(path, volume, label, predictor.table, title, truth,
                  modality=predictor.plan.modality)


@functools.lru_cache(maxsize=1)
def _cases(data: str, split: str, command: str) -> dict[str, LabelledCase]:  # noqa: ARG001
  cases, _ = labelled_cases(data, split)
  return {case.id: case for case in cases}
