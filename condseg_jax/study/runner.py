"""Runs the trials of studies: trains missing members, scores, and writes records."""

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
from condseg_jax.study.plan import duration
from condseg_jax.study.plan import Job
from condseg_jax.study.plan import Pace
from condseg_jax.study.plan import RunPaths
from condseg_jax.system.atomic import replacing
from condseg_jax.system.lock import locked
from condseg_jax.train.loop import train

log = logging.getLogger("condseg_jax")


def run(todo: Sequence[Job], places: RunPaths,
        after: Callable[[str], None] = lambda _study: None) -> list[str]:
  """Runs the missing trials one after the other; a failed trial does not stop the others.

  Args:
    todo: the trials.
    places: folders of the session.
    after: called with the name of each study once its last trial is done or has failed; in one
      process at a time.

  Returns:
    One line per failure.

  Raises:
    KeyboardInterrupt: on Ctrl-C or SIGTERM. The training has saved its state by then; running the
      same command again resumes it.
  """
  waiting = [job for job in todo if not job.done]
  log.info("%d of %d trials are done", len(todo) - len(waiting), len(todo))
  pace, failures = Pace(places.out), []
  keys.git_hash()  # of the running code, before any later commit

  def failed(what: str, error: Exception) -> None:
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    failures.append(f"{what}: {text.strip().partition(chr(10))[0]}")
    log.error("%s", failures[-1], exc_info=not isinstance(error, InputError))

  def close(study: str) -> None:
    try:
      with locked(places.work / "locks" / study):
        after(study)
    except Exception as error:  # trials of other studies remain to be run
      failed(study, error)

  for job in todo:
    if job.done:
      renew(job)
  for name in dict.fromkeys(job.study.name for job in todo):
    if not any(job.study.name == name for job in waiting):
      close(name)
  with interruptible():
    for number, job in enumerate(waiting):
      trial = job.trial
      log.info("[%d/%d] %s: %s, seed %d; about %s left", number + 1, len(waiting), trial.study,
               trial.variant.label, trial.seed, duration(pace.left(waiting[number:], places)))
      try:
        record = run_job(job, places)
      except Exception as error:  # a failed trial must not stop the others
        failed(f"{trial.study}: {trial.variant.label}, seed {trial.seed}", error)
      else:
        pace.add(record)
        scores = statistics.row_scores(record)
        log.info("%s, seed %d: mean Dice %.4f, mean IoU %.4f", trial.variant.label, trial.seed,
                 scores["mean_dice"], scores["mean_iou"])
      if all(other.study.name != trial.study for other in waiting[number + 1:]):
        close(trial.study)
  return failures


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
  folders = [places.run(key) for key in job.keys]
  for number, (config, folder) in enumerate(zip(job.configs, folders, strict=True)):
    if len(folders) > 1:
      log.info("member %d of %d", number + 1, len(folders))
    if train(config, open_prepared(config.data.root, config.data.spacing), folder) == "interrupted":
      raise KeyboardInterrupt
  start = time.perf_counter()
  predictor = scoring.predictor_of([str(folder) for folder in folders])
  cases, _ = labelled_cases(str(job.data.scored), job.data.split)

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
      "curves": [records.curve(folder) for folder in folders],
      "configs": [without_paths(config).to_dict() for config in job.configs],
      "key": job.key, "members": list(job.keys), "data": job.data.data, "truth": job.data.truth,
      "source": keys.source_digest(), "git": keys.git_hash(), "machine": records.machine(),
      "seconds": {"training": round(sum(map(records.run_seconds, folders)), 1),
                  "scoring": round(time.perf_counter() - start, 1)}}


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
