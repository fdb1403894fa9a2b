"""Segments the images of a batch for `cli.predict`, and goes on after one that fails."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import NamedTuple
from typing import TYPE_CHECKING

from condseg_jax.cli import inputs
from condseg_jax.cli.predict_image import as_input_error
from condseg_jax.cli.predict_image import Job
from condseg_jax.cli.predict_image import segment
from condseg_jax.cli.predict_image import Segmented
from condseg_jax.cluster.tasks import Cluster
from condseg_jax.cluster.tasks import each
from condseg_jax.cluster.tasks import in_order
from condseg_jax.cluster.tasks import say
from condseg_jax.errors import InputError
from condseg_jax.errors import printable
from condseg_jax.report import results
from condseg_jax.report.page import collect

if TYPE_CHECKING:
  from condseg_jax.predictor import Predictor
  from condseg_jax.report.page.case import Case


class Batch(NamedTuple):
  """What the images of a batch have in common.

  Attributes:
    job: how each is segmented.
    predictor: the network.
    run: their records.
    page: file of the page, written if `job.report`.
    show_names: whether the page shows the names of files.
    resume: whether to keep the results of an earlier run.
  """

  job: Job
  predictor: Predictor
  run: results.Run
  page: Path
  show_names: bool
  resume: bool


def segment_all(batch: Batch, images: Sequence[tuple[inputs.InputImage, str]],
                cluster: Cluster | None = None) -> int:
  """Segments images, each given with its name on the page; returns the exit code."""
  failures: list[str] = []
  refusals: list[str] = []
  cases: list[Case] = []
  for image, result in in_order(_results(batch, images, cluster)):
    if result.error is not None:
      failures.append(f"{image.stem}: {result.error}" if image.series else str(result.error))
    refusals += _refused(image, result.refusal)
    if result.page is not None:
      collect.add(cases, result.page)
  failures += [str(batch.run.problem)] if batch.run.problem else []
  if batch.job.report:
    try:
      print(batch.job.place.named(collect.write_report(batch.page, cases, batch.predictor)))
    except InputError as error:
      failures.append(str(error))
    except Exception as error:  # must not hide the failures above
      reason = printable(f"{type(error).__name__}: {error}")
      failures.append(f"{batch.page}: cannot be made: {reason}")
  for line in (*refusals, *(f"failed: {failure}" for failure in failures)):
    print(line, file=sys.stderr)
  return 1 if failures or refusals else 0


def _results(batch: Batch, images: Sequence[tuple[inputs.InputImage, str]],
             cluster: Cluster | None) -> Iterator[tuple[int, tuple[inputs.InputImage, Segmented]]]:
  """Yields number, image and what becomes of it, as soon as it is recorded."""
  import tqdm
  todo, tasks = [], []
  for number, (image, name) in enumerate(images):
    title = f"{number + 1}/{len(images)} {image.stem}"
    masks = _masks_of(batch, image)
    if batch.resume and all(map(batch.job.place.exists, masks)):
      reason = _outdated(image, batch.run, masks)
      print(f"{title}: {reason or 'already done'}", flush=True)
      if not reason:
        earlier = batch.run.earlier_case(image.stem)
        yield number, (image, Segmented({}, refusal=earlier.get("reason", ""),
                                        page=collect.earlier_case(name)))
        continue
    todo.append(number)
    tasks.append((batch.job, image, name, title, masks))
  outcomes = each(cluster, segment, tasks, [str(images[number][0].label) for number in todo],
                  device=True, shared=[batch.job.output])
  for outcome in tqdm.tqdm(outcomes, desc="predicting", unit="image", total=len(tasks),
                           disable=cluster is None or not tasks):
    number = todo[outcome.number]
    image, name = images[number]
    result = outcome.value
    if outcome.error is not None:
      error = as_input_error(outcome.error, image.path)
      if image.origin:  # and not the temporary file that it was read as
        error = error.renamed(image.path, image.origin)
      result = Segmented(results.CaseRecord().entry(0.0, error), error=error)
    batch.run.add(image.stem, result.entry)
    if result.error is None:
      say("  ".join(map(batch.job.place.name, result.files)), sys.stdout)
      try:
        batch.job.place.send([batch.run.path], keep=True)
      except InputError as error:
        result = Segmented(result.entry, error=error)
    if result.error is not None:
      if len(images) == 1 or result.error.usage:
        raise result.error
      page = collect.failed_case(name, result.error, image.path, batch.show_names)
      result = result._replace(page=page)
    yield number, (image, result)


def _refused(image: inputs.InputImage, reason: str) -> list[str]:
  return [f"refused: {printable(image.label)}: {reason}"] if reason else []


def _masks_of(batch: Batch, image: inputs.InputImage) -> list[Path]:
  """Returns the masks of an image where they are, or will be."""
  aside = batch.run.earlier_case(image.stem).get("status") == "refused"
  job = batch.job
  return list(results.mask_files(job.output / results.REFUSED if aside else job.output, image.stem,
                                 batch.predictor, job.classes, job.options.separate).values())


def _outdated(image: inputs.InputImage, run: results.Run, masks: Iterable[Path]) -> str:
  """Returns why existing masks are not those of an image; "" if they are."""
  entry = run.earlier_case(image.stem)
  if entry.get("status", "done") == "failed":
    return "failed since its masks were written, predicted again"
  recorded = entry.get("input")
  unchanged = inputs.is_unchanged(image, recorded) if recorded else inputs.is_older(image, masks)
  return "" if unchanged else "was changed since its masks were written, predicted again"
