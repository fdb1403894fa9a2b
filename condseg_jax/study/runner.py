"""Runs the trials of studies: trains missing members, scores, and writes records."""

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import logging
import os
from pathlib import Path
import signal
import time

import numpy as np

from condseg_jax.cluster.tasks import Cluster
from condseg_jax.cluster.tasks import each
from condseg_jax.data.store import open_prepared
from condseg_jax.errors import InputError
from condseg_jax.evaluate.raw_cases import labelled_cases
from condseg_jax.model_io.bundle import without_paths
from condseg_jax.study import configs
from condseg_jax.study import datasets
from condseg_jax.study import fingerprint as keys
from condseg_jax.study import records
from condseg_jax.study import score as scoring
from condseg_jax.study import statistics
from condseg_jax.study.federated import federate
from condseg_jax.study.growth import grow
from condseg_jax.study.plan import duration
from condseg_jax.study.plan import Job
from condseg_jax.study.plan import Pace
from condseg_jax.study.plan import RunPaths
from condseg_jax.study.unaware import aware
from condseg_jax.system.atomic import replacing
from condseg_jax.system.lock import locked
from condseg_jax.train.loop import train

log = logging.getLogger("condseg_jax")


def run(todo: Sequence[Job], places: RunPaths,
        after: Callable[[str], None] = lambda _study: None,
        cluster: Cluster | None = None) -> list[str]:
  """Runs the missing trials; a failed trial does not stop the others.

  Args:
    todo: the trials.
    places: folders of the session.
    after: called with the name of each study once its last trial is done or has failed; in one
      process at a time.
    cluster: whose workers run the trials; None for one after the other in this process.

  Returns:
    One line per failure.

  Raises:
    KeyboardInterrupt: on Ctrl-C or SIGTERM. The training has saved its state by then; running the
      same command again resumes it. Workers of a cluster resume from their last checkpoint.
  """
  waiting = [job for job in todo if not job.done]
  log.info("%d of %d trials are done", len(todo) - len(waiting), len(todo))
  pace, failures = Pace(places.out), []
  keys.git_hash()  # of the running code, before any later commit

  def close(study: str) -> None:
    try:
      with locked(places.work / "locks" / study):
        after(study)
    except Exception as error:  # trials of other studies remain to be run
      failures.append(_failure(study, error))

  def announced() -> Iterator[tuple[Job, RunPaths]]:
    for number, job in enumerate(waiting):
      log.info("[%d/%d] %s; about %s left", number + 1, len(waiting), _title(job),
               duration(pace.left(waiting[number:], places)))
      yield job, places

  for job in todo:
    if job.done:
      renew(job)
  left = collections.Counter(job.study.name for job in waiting)
  for name in dict.fromkeys(job.study.name for job in todo):
    if not left[name]:
      close(name)
  with interruptible():
    for outcome in each(cluster, try_job, announced(), list(map(_title, waiting)), device=True,
                        shared=[places.out]):
      job = waiting[outcome.number]
      if outcome.error is not None:  # it ends its workers
        failures.append(_failure(_title(job), outcome.error))
      elif isinstance(outcome.value, str):
        failures.append(outcome.value)
      else:
        pace.add(outcome.value)
        scores = statistics.row_scores(outcome.value)
        log.info("%s, seed %d: mean Dice %.4f, mean IoU %.4f", job.trial.variant.label,
                 job.trial.seed, scores["mean_dice"], scores["mean_iou"])
      left[job.study.name] -= 1
      if not left[job.study.name]:
        close(job.study.name)
  return failures


def try_job(job: Job, places: RunPaths) -> dict | str:
  """Returns the record of a trial, see `run_job`, or a line about its failure."""
  try:
    return run_job(job, places)
  except Exception as error:  # a failed trial must not stop the others
    return _failure(_title(job), error)


def _title(job: Job) -> str:
  return f"{job.trial.study}: {job.trial.variant.label}, seed {job.trial.seed}"


def _failure(what: str, error: Exception) -> str:
  """Logs a failure; returns a line about it."""
  text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
  line = f"{what}: {text.strip().partition(chr(10))[0]}"
  log.error("%s", line, exc_info=None if isinstance(error, InputError) else error)
  return line


def run_job(job: Job, places: RunPaths) -> dict:
  """Writes and returns the record of a trial, reusing another study's result for the same key.

  Locks keep other processes from training the same members meanwhile.
  """
  with contextlib.ExitStack() as held:
    for key in sorted(set(job.keys)):  # a fixed order prevents deadlock
      held.enter_context(locked(places.work / "locks" / key))
    result = records.borrowed(places.out, job.key) or _result(job, places)
    record = {**_declared(job), **result}
    records.write(job.path, record)
  return record


def renew(job: Job) -> None:
  """Updates the declared fields in the record of a finished trial if they have changed."""
  record = records.read(job.path)
  changed = {**record, **_declared(job)}
  if changed != record:
    records.write(job.path, changed)


def _declared(job: Job) -> dict:
  variant = job.trial.variant
  return {"study": job.study.name, "label": variant.label, "variant": variant.name,
          "mechanism": variant.mechanism or configs.mechanism_of(job.configs[0].conditioning),
          "level": variant.level, "seed": job.trial.seed, "against": job.trial.against,
          "order": job.order, "level_name": job.study.level}


def _result(job: Job, places: RunPaths) -> dict:
  """Trains and scores; returns every field of the record that does not depend on the study."""
  folders, seconds, outcome = _trained(job, places)
  start = time.perf_counter()
  predictor = scoring.predictor_of([str(folder) for folder in folders])
  cases, _ = labelled_cases(str(job.data.scored), job.data.split)
  predictor = aware(predictor, cases)

  def keep(image, truth, prediction):
    path = places.kept(job.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
      np.savez_compressed(
          Path(temporary), image=image.array, truth=truth.array, prediction=prediction.array,
          spacing=np.asarray(image.spacing), names=np.array(predictor.table.names),
          colors=np.array(predictor.table.colors), case=np.array(cases[0].id),
          modality=np.array(predictor.plan.modality))

  scores = scoring.score(predictor, cases, fusion=job.trial.variant.fusion,
                         groups=[datasets.profile_of(case.id) for case in cases], keep=keep)
  return {
      "dataset": job.trial.variant.dataset, "steps": job.steps, "fusion": job.trial.variant.fusion,
      "parameters": scoring.parameters(predictor), "scores": scores,
      "curves": [] if job.further else [records.curve(folder) for folder in folders],
      "configs": [without_paths(config).to_dict() for config in job.configs],
      "key": job.key, "members": list(job.keys), "data": job.data.data, "truth": job.data.truth,
      "source": keys.source_digest(), "git": keys.git_hash(), "machine": records.machine(),
      "seconds": {"training": round(seconds, 1),
                  "scoring": round(time.perf_counter() - start, 1)},
      **({"further": job.further} if job.further else {}), **outcome}


def _trained(job: Job, places: RunPaths) -> tuple[list[Path], float, dict]:
  """Trains what a trial scores; returns its folders, seconds, and further fields of the record."""
  variant, config = job.trial.variant, job.configs[0]
  if variant.federated is not None:
    folder = places.run(job.key)
    seconds, more = federate(variant.federated, config, folder)
    return [folder], seconds, more
  folders = [places.run(key) for key in job.keys]
  for number, (one, folder) in enumerate(zip(job.configs, folders, strict=True)):
    if len(folders) > 1:
      log.info("member %d of %d", number + 1, len(folders))
    if train(one, open_prepared(one.data.root, one.data.spacing), folder) == "interrupted":
      raise KeyboardInterrupt
  if variant.growth is not None:
    grown, seconds, more = grow(variant.growth, config, folders[0], places.run(job.key))
    return [grown], seconds, more
  return folders, sum(map(records.run_seconds, folders)), {}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Maps Ctrl-C to SIGTERM, on which a training saves its state; elsewhere both end the session."""
  def leave(*_):
    raise KeyboardInterrupt

  def pass_on(*_):
    os.kill(os.getpid(), signal.SIGTERM)

  before = {signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
            signal.SIGINT: signal.signal(signal.SIGINT, pass_on)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
