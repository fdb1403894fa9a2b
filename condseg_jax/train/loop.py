"""The training loop, written to be read from top to bottom and forked."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import logging
import time
from typing import Any
from typing import Protocol

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.config import Config
from condseg_jax.data import sampling
from condseg_jax.data.priors import smallest_ml
from condseg_jax.data.selection import Fold
from condseg_jax.data.store import Store
from condseg_jax.errors import InputError
from condseg_jax.evaluate.cases import stored_cases
from condseg_jax.evaluate.postprocess_tuning import Candidates
from condseg_jax.evaluate.postprocess_tuning import choose
from condseg_jax.evaluate.run import evaluate
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.evaluate.scores import summarise
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.predictor import Predictor
from condseg_jax.system.lock import held
from condseg_jax.train import parallel
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.memory import check_memory
from condseg_jax.train.memory import memory_lines
from condseg_jax.train.resume import check_resume
from condseg_jax.train.run_files import finished
from condseg_jax.train.run_files import RunFiles
from condseg_jax.train.run_files import trim_metrics
from condseg_jax.train.setup import check_config
from condseg_jax.train.setup import make_setup
from condseg_jax.train.setup import make_step_and_state
from condseg_jax.train.setup import Setup
from condseg_jax.train.state import make_schedule
from condseg_jax.train.state import TrainState
from condseg_jax.train.timing import Clock
from condseg_jax.train.timing import Interrupt

NOT_FINITE_STEPS = 50  # steps in a row, after which a run fails; each of them changed nothing

log = logging.getLogger("condseg_jax")


class Start(Protocol):
  """Gives a new run something to start from; `train.start.Start` is one."""

  def adapted(self, setup: Setup) -> Setup:
    """Returns the parts of a run with what comes along of classes and plan."""

  def taken(self, setup: Setup, state: TrainState) -> TrainState:
    """Returns the state at step 0 with what is taken of the parameters."""


class Watcher(Protocol):
  """Sees what a run evaluates; `report.progress.Progress` is one."""

  def on_case(self, *case: Any) -> None:
    """Sees a held-out case; the arguments are those of `on_case` of `evaluate.run.evaluate`."""

  def draw(self) -> np.ndarray:
    """Draws the run after an evaluation, uint8 (H, W, 3), for TensorBoard."""


def train(config: Config, stores: Sequence[Store], workdir, *, resume: str = "auto",
          verify: bool = True, watcher: Watcher | None = None, fold: Fold | None = None,
          start: Callable[[], Start] | None = None) -> str:
  """Trains a network.

  Args:
    config: all settings.
    stores: prepared data.
    workdir: folder for checkpoints and records, local or in a bucket.
    resume: `auto` resumes from the last checkpoint if there is one, `must` fails without one,
      `never` fails if there is one, so that nothing is overwritten, and `last_whole` resumes from
      the newest checkpoint that is not damaged and moves damaged ones to WORKDIR/damaged.
    watcher: sees the held-out cases of every evaluation and draws the state of the run.
    verify: whether a checkpoint to resume from is compared with its SHA-256 digests.
    fold: which cases to train on and to hold out; `data.hold_out` and `data.max_cases` decide when
      None.
    start: reads what `init.source` names, see `train.start.read_start`; called if the run is new.

  Returns:
    `finished`, or `interrupted` after a SIGTERM; the same call then resumes.

  Raises:
    InputError: unusable data or settings, a workdir that another process uses, a step that does not
      fit into memory, or a run that diverged.
  """
  check_config(config)
  with held(workdir) if parallel.is_first() else contextlib.nullcontext():
    return _train(config, stores, workdir, resume, verify, watcher, fold, start)


def _train(config: Config, stores: Sequence[Store], workdir, resume: str, verify: bool,
           watcher: Watcher | None, fold: Fold | None,
           start: Callable[[], Start] | None) -> str:
  started = time.monotonic()

  # --- previous progress ----------------------------------------------------------------------
  checkpoints = Checkpoints(workdir, verify=verify)
  last = checkpoints.newest_whole() if resume == "last_whole" else checkpoints.last_step
  check_resume(resume, last, workdir)
  recorded = None if last is None else checkpoints.read_record(last)
  source = None
  if config.init.source and last is not None:
    log.info("the workdir holds step %d, which is resumed: init.source is not read", last)
  elif config.init.source:
    if start is None:
      raise InputError("init.source", "is not read by this caller",
                       "pass start=lambda: train.start.read_start(config.init)")
    source = start()

  # --- data, classes, plan, network -----------------------------------------------------------
  setup = make_setup(config, stores, recorded, workdir, fold)
  if source is not None:
    setup = source.adapted(setup)
  config, model, record = setup.config, setup.model, setup.record
  table = record.table
  if last is not None and last >= config.train.steps and finished(workdir):
    log.info("finished at step %d before; nothing is left to do", last)
    checkpoints.close()
    return "finished"
  for line in memory_lines(setup.plan_summary, config.data.memory_gb):
    log.info("%s", line)
  check_memory(setup.plan_summary, config.data.batch_size)

  # --- step and state -------------------------------------------------------------------------
  driver, state = make_step_and_state(setup)
  if last is not None:
    state = checkpoints.restore(last, state)
    log.info("resuming from step %d", last)
  elif source is not None:
    state = source.taken(setup, state)
  trim_metrics(workdir, last or 0)
  first = int(state.step)
  state = driver.place_state(state)

  # --- length of the run ----------------------------------------------------------------------
  if config.train.minutes and last is None:
    from condseg_jax.train import budget
    with contextlib.closing(setup.batches()) as trial:
      seconds = budget.step_seconds(driver, state, trial)
    config = budget.fit_steps(
        config, 60 * config.train.minutes - (time.monotonic() - started), seconds,
        lambda: evaluation_seconds(setup.held_out, model, state, record))
    record = record._replace(config=config)
    log.info("%s", budget.describe(config, seconds, setup.plan_summary["memory_gb"]))
  _describe(setup, state, config.train.steps)
  schedule = make_schedule(config.optimizer, config.train.steps)
  steps = driver.place_steps(config.train.steps)
  batches = setup.batches(first)
  run_files = RunFiles(workdir, config.to_dict(), resumed=last is not None)
  run_files.plan(setup.plan_summary)
  clock = Clock(first, config.train.steps)
  since_log, results, status, not_finite = [], {}, "finished", 0

  # --- steps ----------------------------------------------------------------------------------
  with Interrupt(at_end=lambda: run_files.finish("interrupted", {"step": first})) as interrupt:
    try:
      for step in range(first, config.train.steps):
        with jax.transfer_guard("disallow"):
          with jax.transfer_guard_host_to_device("allow"):
            batch = driver.place_batch(next(batches))
          state, metrics = driver.step(state, batch, steps)
        since_log.append(metrics)
        done = step + 1
        logs = done % config.train.log_every == 0 or done == config.train.steps
        stop = interrupt.everywhere(asks=logs)

        if logs:
          since_log = jax.device_get(since_log)
          values = training_scalars(since_log, table)
          values["learning_rate"] = float(schedule(step))
          values["steps_per_second"] = clock.rate(done)
          run_files.scalars(done, values)
          log.info("step %d/%d  loss %.4f  dice %.3f  %s", done, config.train.steps,
                   values["loss"], values["mean_dice"], clock.left(done))
          not_finite = trailing_not_finite(since_log, not_finite)
          if not_finite >= min(NOT_FINITE_STEPS, config.train.steps - first):
            raise InputError(f"step {done}", "loss or gradient has not been finite for the last "
                             f"{not_finite} steps", "lower optimizer.learning_rate, or check "
                             "the intensities with condseg-verify")
          since_log = []

        score = None
        if done % config.train.eval_every == 0 or done == config.train.steps:
          with clock.paused():
            score, cleanings = _score_held_out(setup.held_out, model, state, record, run_files,
                                               done, watcher)
            if watcher is not None and parallel.is_first():
              run_files.picture(done, watcher.draw())
            record = record._replace(cleaning=cleanings)
          if score is not None:
            results["held_out_mean_dice"] = score
        if done % config.train.eval_every == 0 or done == config.train.steps or stop:
          with clock.paused():
            checkpoints.save(state, record, score)
        if stop:
          status = "interrupted"
          log.info("stopped at step %d; re-run the command to resume", done)
          break
    except BaseException:
      with contextlib.suppress(InputError):  # a full disk, which is the error already
        run_files.finish("failed", results)
      raise
    finally:
      batches.close()
      checkpoints.wait()
      checkpoints.close()
  results |= {"step": int(state.step), "skipped_steps": int(state.skipped)}
  run_files.finish(status, results)
  return status


# --- parts ------------------------------------------------------------------------------------
def training_scalars(metrics: Sequence[Mapping], table: ClassTable) -> dict[str, float]:
  """Averages metrics over the steps since the last log; Dice per class over annotated decodes."""
  dice_K = np.sum([m["dice_K"] for m in metrics], axis=0)
  count_K = np.sum([m["count_K"] for m in metrics], axis=0)
  seen = count_K > 0
  values = {"loss": float(np.mean([m["loss"] for m in metrics])),
            "gradient_norm": float(np.mean([m["gradient_norm"] for m in metrics])),
            "skipped": float(metrics[-1]["skipped"]),
            "mean_dice": float(np.mean(dice_K[seen] / count_K[seen])) if seen.any() else np.nan}
  values |= {f"dice/{table.names[k]}": float(dice_K[k] / count_K[k]) for k in np.flatnonzero(seen)}
  return values


def trailing_not_finite(metrics: Sequence[Mapping], before: int) -> int:
  """Returns the number of latest steps in a row whose loss or gradient was not finite.

  Args:
    metrics: of the steps since the last call.
    before: what the last call returned.
  """
  for m in metrics:
    finite = np.isfinite(m["loss"]) and np.isfinite(m["gradient_norm"])
    before = 0 if finite else before + 1
  return before


def evaluation_seconds(held_out, model, state, record) -> float:
  """Returns the seconds that scores on all held-out cases will take, measured on one of them."""
  if not held_out:
    return 0.0
  variables = jax.device_put(jax.device_get(state.averaged), jax.local_devices()[0])
  predictor = Predictor(model, variables, record.table, record.plan)
  cases = parallel.share(stored_cases(held_out))
  for _ in range(2):  # the first compiles
    begun = time.monotonic()
    evaluate(predictor, cases[:1], fast=True)
  return len(cases) * (time.monotonic() - begun)


def _score_held_out(held_out, model, state, record, run_files, step,
                    watcher: Watcher | None) -> tuple[float | None, dict]:
  """Scores the held-out training cases, each on its annotated classes.

  Returns:
    The mean Dice, and class → best component filter, which is not applied in that Dice.
  """
  if not held_out:
    return None, {}
  variables = jax.device_put(jax.device_get(state.averaged), jax.local_devices()[0])
  predictor = Predictor(model, variables, record.table, record.plan, step)
  trials = Candidates(smallest_ml([case for d in held_out for case in d.cases]))

  def on_case(*case) -> None:
    trials.on_case(*case)
    if watcher is not None:
      watcher.on_case(*case)
  rows = evaluate(predictor, parallel.share(stored_cases(held_out)), fast=True, on_case=on_case)
  rows = [CaseScore(*row) for row in parallel.gather([dataclasses.astuple(row) for row in rows])]
  tried = parallel.gather([(name, dataclasses.astuple(c), dice) for name, c, dice in trials.rows])
  chosen = choose([(name, ComponentFilter(*c), dice) for name, c, dice in tried])
  summary = summarise(rows, record.table.names)
  scores = {name: c["dice"]["mean"] for name, c in summary["classes"].items() if c["dice"]["n"]}
  run_files.scalars(step, {"held_out/mean_dice": summary["mean_dice"],
                        **{f"held_out/dice/{name}": dice for name, dice in scores.items()}})
  log.info("held out: mean Dice %.3f  %s", summary["mean_dice"],
               "  ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
  return summary["mean_dice"], {name: dataclasses.asdict(c) for name, c in chosen.items()}


def _describe(setup: Setup, state: TrainState, steps: int) -> None:
  table, plan = setup.record.table, setup.record.plan
  count = sum(x.size for x in jax.tree.leaves(state.params))
  log.info("%d classes (%s), %d parameters, subvolume %s, spacing %s", len(table),
           ", ".join(table.names), count, plan.subvolume,
           tuple(round(s, 3) for s in plan.spacing))
  for d in setup.training:
    log.info("dataset %s: %d cases annotate %s", d.name, len(d.cases), ", ".join(d.annotated))
  for d in setup.bare:
    log.info("dataset %s: %d cases without masks", d.name, len(d.cases))
  pseudo = [case for d in (*setup.training, *setup.bare) for case in d.cases if case.pseudo]
  if pseudo and sampling.uses_pseudo(setup.config.data):
    log.info("%d cases have pseudo-masks, with the weight %g", len(pseudo),
             setup.config.data.pseudo_weight)
  log.info("%d cases held out for tuning; %d steps on %d %s device(s)",
           sum(len(d.cases) for d in setup.held_out), steps,
           jax.device_count(), jax.default_backend())
