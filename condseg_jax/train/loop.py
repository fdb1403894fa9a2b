"""The trainer, meant to be read from top to bottom and forked."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import logging

import jax
import numpy as np

from condseg_jax.classes import ClassTable
from condseg_jax.classes import normal_name
from condseg_jax.data import sampling
from condseg_jax.data.fingerprint import fingerprint
from condseg_jax.data.priors import class_priors
from condseg_jax.data.priors import smallest_ml
from condseg_jax.data.store import Store
from condseg_jax.datasets import discover
from condseg_jax.errors import InputError
from condseg_jax.evaluate.cases import stored_cases
from condseg_jax.evaluate.postprocess_tuning import Candidates
from condseg_jax.evaluate.postprocess_tuning import choose
from condseg_jax.evaluate.run import evaluate
from condseg_jax.evaluate.scores import CaseScore
from condseg_jax.evaluate.scores import summarise
from condseg_jax.infer.postprocess import ComponentFilter
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.models.build import build_model
from condseg_jax.models.class_vector import with_texts
from condseg_jax.models.initial import initial_variables
from condseg_jax.predictor import Predictor
from condseg_jax.train import cluster
from condseg_jax.train import parallel
from condseg_jax.train import setup
from condseg_jax.train.augment import Augmentation
from condseg_jax.train.checkpoint import Checkpoints
from condseg_jax.train.record import finished
from condseg_jax.train.record import Record
from condseg_jax.train.record import trim_metrics
from condseg_jax.train.setup import make_plan
from condseg_jax.train.setup import memory_lines
from condseg_jax.train.setup import plan_record
from condseg_jax.train.setup import recorded_plan
from condseg_jax.train.state import make_optimizer
from condseg_jax.train.state import make_schedule
from condseg_jax.train.state import TrainState
from condseg_jax.train.step import make_train_step
from condseg_jax.train.timing import Clock
from condseg_jax.train.timing import Interrupt

log = logging.getLogger("condseg_jax")


def train(config: Mapping, workdir, *, resume: str = "auto") -> str:
  """Trains a network.

  Args:
    config: see `experiments/configs/base.py`; plain containers.
    workdir: for checkpoints and records; a local folder or a bucket.
    resume: `auto` goes on from the last checkpoint if there is one, `must` fails without one,
      `never` fails where there is one: nothing already written is lost.

  Returns:
    `finished`, or `interrupted` after a SIGTERM; the same command then goes on.

  Raises:
    InputError: on unusable data or settings.
  """
  # --- what was done before -------------------------------------------------------------------
  checkpoints = Checkpoints(workdir)
  last = checkpoints.last_step
  setup.check_resume(resume, last, workdir)
  recorded = None if last is None else checkpoints.read_record(last)

  # --- data -----------------------------------------------------------------------------------
  data = config["data"]
  with cluster.first_process_first():
    stores = discover.open_stores(data["root"], data["spacing"], data["cache"] or None,
                                 progress=jax.process_index() == 0)
  everything = sampling.datasets(stores, "train")
  check_kept(data["keep"], everything)
  parts = [sampling.hold_out(d, data["hold_out"], config["seed"]) for d in everything]
  seen = [sampling.fewer_cases(p[0], data["cases"], config["seed"]) for p in parts]
  training = sampling.learn_only(seen, data["keep"])
  held_out = sampling.learn_only([p[1] for p in parts if p[1].cases], data["keep"])
  if recorded is None:
    table = class_table(training, stores, data)
    config = with_texts(config, table)
    config, plan = make_plan(config, training, table, seen)
  else:
    table, plan = recorded.table, recorded.plan
    config = recorded_plan(config, recorded.config)
    setup.check_same_model(recorded, config, workdir)
    setup.check_same_plan(plan, stores[0], config["data"]["subvolume"], workdir)
  pooled = fingerprint([case for d in training for case in d.cases])["pooled"]
  priors = class_priors([case for d in training for case in d.cases], table.names)
  data, record = config["data"], ModelRecord(config, table, plan, pooled, priors)
  if last is not None and last >= config["train"]["steps"] and finished(workdir):
    log.info("finished at step %d before; nothing is left to do", last)
    checkpoints.close()
    return "finished"

  # --- network and step -----------------------------------------------------------------------
  settings = config["train"]
  model = build_model(config["model"], config["conditioning"], table.codes)
  setup.check_subvolume(plan, model)
  setup.check_parts(model, settings["accumulate"])
  optimizer = make_optimizer(config["optimizer"], settings["steps"])
  schedule = make_schedule(config["optimizer"], settings["steps"])
  augmentation = Augmentation(**{**config["augment"], "mirror": tuple(config["augment"]["mirror"])})
  train_step = make_train_step(
      model, optimizer, augmentation=augmentation, spacing=plan.spacing,
      lateral_axes=lateral_axes(table, model.ndim), alpha_K=alphas(table, config["loss"]),
      bce_weight=config["loss"]["bce_weight"], ema_decay=settings["ema_decay"],
      seed=config["seed"], accumulate=settings["accumulate"],
      supervision=config["loss"]["supervision"], sharpness=config["loss"]["sharpness"])
  driver = parallel.make_driver(settings["driver"], train_step, data["batch_size"],
                                settings["accumulate"])
  planned = plan_record(config, training, table, plan)
  for line in memory_lines(planned, data["memory_gb"]):
    log.info("%s", line)

  # --- state ----------------------------------------------------------------------------------
  variables = initial_variables(model, config["seed"], (*plan.subvolume, plan.channels))
  state = TrainState.create(variables, optimizer, ema=settings["ema_decay"] > 0)
  if last is not None:
    state = checkpoints.restore(last, state)
    trim_metrics(workdir, last)
    log.info("resuming from step %d", last)
  first = int(state.step)
  state = driver.place_state(state)
  _describe(training, held_out, table, plan, state, settings)
  batches = sampling.batches(
      training, table, plan, batch_size=data["batch_size"], seed=config["seed"], start_step=first,
      weights=data["weights"], batch_class=data["batch_class"],
      classes_per_image=data["classes_per_image"], unlabelled=data["unlabelled"],
      foreground=data["foreground"], process_index=jax.process_index(),
      process_count=jax.process_count())
  writer = Record(workdir, config, resumed=last is not None)
  writer.plan(planned)
  clock = Clock(first, settings["steps"])
  since_log, results, status = [], {}, "finished"

  # --- steps ----------------------------------------------------------------------------------
  with Interrupt() as interrupt:
    try:
      for step in range(first, settings["steps"]):
        with jax.transfer_guard("disallow"):
          with jax.transfer_guard_host_to_device("allow"):
            batch = driver.place_batch(next(batches))
          state, metrics = driver.step(state, batch)
        since_log.append(metrics)
        done = step + 1
        logs = done % settings["log_every"] == 0 or done == settings["steps"]
        stop = interrupt.everywhere(asks=logs)

        if logs:
          values = training_scalars(jax.device_get(since_log), table)
          values["learning_rate"] = float(schedule(step))
          values["steps_per_second"] = clock.rate(done)
          writer.scalars(done, values)
          log.info("step %d/%d  loss %.4f  dice %.3f  %s", done, settings["steps"],
                   values["loss"], values["mean_dice"], clock.left(done))
          since_log = []

        score = None
        if done % settings["eval_every"] == 0 or done == settings["steps"]:
          with clock.paused():
            score, cleanings = _score_held_out(held_out, model, state, record, writer, done)
            record = record._replace(cleaning=cleanings)
          if score is not None:
            results["held_out_mean_dice"] = score
        if done % settings["eval_every"] == 0 or done == settings["steps"] or stop:
          with clock.paused():
            checkpoints.save(state, record, score)
        if stop:
          status = "interrupted"
          log.info("stopped at step %d; the same command goes on from here", done)
          break
    except BaseException:
      writer.finish("failed", results)
      raise
    finally:
      batches.close()
      checkpoints.wait()
      checkpoints.close()
  results |= {"step": int(state.step), "skipped_steps": int(state.skipped)}
  writer.finish(status, results)
  return status


# --- parts ------------------------------------------------------------------------------------
def check_kept(keep: Sequence[str], datasets: Sequence[sampling.Dataset]) -> None:
  """Raises InputError where a class to learn is annotated nowhere."""
  present = dict.fromkeys(name for d in datasets for name in d.annotated)
  for name in keep:
    if normal_name(name) not in present:
      raise InputError(f"data.keep: class {name!r}", "is annotated in no training dataset",
                       f"annotated: {', '.join(present)}", usage=True)


def class_table(training: Sequence[sampling.Dataset], stores: Sequence[Store],
                data: Mapping) -> ClassTable:
  """The classes that the training data annotates, ordered by the config or by appearance."""
  present = dict.fromkeys(name for d in training for name in d.annotated)
  known = {c.name for s in stores for c in s.table.classes}
  left_out = known - set(present) if data["keep"] else set()
  names = [normal_name(n) for n in data["classes"] if normal_name(n) not in left_out]
  names = names or list(present)
  for name in names:
    if name not in present:
      raise InputError(f"class {name!r}", "is annotated in no training dataset",
                       f"annotated: {', '.join(present)}", usage=True)
  for name in present:
    if name not in names:
      raise InputError("data.classes", f"lacks {name!r}, which a dataset annotates",
                       "add it, or leave data.classes empty", usage=True)
  refused = {c.name: c.no_mirror for s in stores for c in s.table.classes}
  refused = {k: v for k, v in refused.items() if k in names}
  for name, axes in data["no_mirror"].items():
    if normal_name(name) in left_out:
      continue
    if normal_name(name) not in names:
      raise InputError(f"data.no_mirror.{name}", "is no class of the training data",
                       f"classes: {', '.join(names)}", usage=True)
    refused[normal_name(name)] = tuple(axes)
  presets = {key: [n for n in group if normal_name(n) not in left_out]
             for key, group in data["presets"].items()}
  presets = {key: group for key, group in presets.items() if group or not left_out}
  return ClassTable.create(names, presets=presets, no_mirror=refused,
                           capacity=max(64, len(names)))


def lateral_axes(table: ClassTable, ndim: int) -> np.ndarray:
  """bool [K, axes]: where a class has sides."""
  axes = "DHW"[3 - ndim:]
  return np.array([[axis in c.no_mirror for axis in axes] for c in table.classes])


def alphas(table: ClassTable, loss: Mapping) -> np.ndarray:
  """α of every class, 1 unless `loss.alpha` says otherwise: float32 [K]."""
  alpha_K = np.ones(len(table), np.float32)
  for name, value in loss["alpha"].items():
    alpha_K[table.index(name)] = value
  return alpha_K


def training_scalars(metrics: Sequence[Mapping], table: ClassTable) -> dict[str, float]:
  """Means over the steps since the last log; Dice per class over its annotated decodes."""
  dice_K = np.sum([m["dice_K"] for m in metrics], axis=0)
  count_K = np.sum([m["count_K"] for m in metrics], axis=0)
  seen = count_K > 0
  values = {"loss": float(np.mean([m["loss"] for m in metrics])),
            "gradient_norm": float(np.mean([m["gradient_norm"] for m in metrics])),
            "skipped": float(metrics[-1]["skipped"]),
            "mean_dice": float(np.mean(dice_K[seen] / count_K[seen])) if seen.any() else np.nan}
  values |= {f"dice/{table.names[k]}": float(dice_K[k] / count_K[k]) for k in np.flatnonzero(seen)}
  return values


def _score_held_out(held_out, model, state, record, writer, step) -> tuple[float | None, dict]:
  """Mean Dice on the held-out part of the training cases, each on the classes it annotates.

  And class → what is best done to its pieces; it is told, not counted in the Dice.
  """
  if not held_out:
    return None, {}
  variables = jax.device_put(jax.device_get(state.averaged), jax.local_devices()[0])
  predictor = Predictor(model, variables, record.table, record.plan, step)
  trials = Candidates(smallest_ml([case for d in held_out for case in d.cases]))
  rows = evaluate(predictor, cluster.share(stored_cases(held_out)), fast=True, seen=trials.seen)
  rows = [CaseScore(*row) for row in cluster.gather([dataclasses.astuple(row) for row in rows])]
  tried = cluster.gather([(name, dataclasses.astuple(c), dice) for name, c, dice in trials.rows])
  chosen = choose([(name, ComponentFilter(*c), dice) for name, c, dice in tried])
  summary = summarise(rows, record.table.names)
  scores = {name: c["dice"]["mean"] for name, c in summary["classes"].items() if c["dice"]["n"]}
  writer.scalars(step, {"held_out/mean_dice": summary["mean_dice"],
                        **{f"held_out/dice/{name}": dice for name, dice in scores.items()}})
  log.info("held out: mean Dice %.3f  %s", summary["mean_dice"],
               "  ".join(f"{name} {dice:.3f}" for name, dice in scores.items()))
  return summary["mean_dice"], {name: dataclasses.asdict(c) for name, c in chosen.items()}


def _describe(training, held_out, table, plan, state, settings) -> None:
  count = sum(x.size for x in jax.tree.leaves(state.params))
  log.info("%d classes (%s), %d parameters, subvolume %s, spacing %s", len(table),
           ", ".join(table.names), count, plan.subvolume,
           tuple(round(s, 3) for s in plan.spacing))
  for d in training:
    log.info("dataset %s: %d cases annotate %s", d.name, len(d.cases), ", ".join(d.annotated))
  log.info("%d cases held out for tuning; %d steps on %d %s device(s)",
           sum(len(d.cases) for d in held_out), settings["steps"], jax.device_count(),
           jax.default_backend())
