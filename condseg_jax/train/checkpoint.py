"""Checkpoints: the train state and everything needed to use it; the only module that saves them.

    WORKDIR/checkpoints/STEP/state     arrays of the `TrainState`
    WORKDIR/checkpoints/STEP/model     JSON: config, class table, plan
    WORKDIR/checkpoints/STEP/digests   JSON: SHA-256 of every array and of the model record

The last two steps and the best step are kept. Writing is asynchronous and atomic: a checkpoint gets
its final name only when it is complete. Loading recomputes the digests, since the array format has
no checksum of its own: a flipped bit would otherwise be a slightly different network.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import hashlib
import inspect
import json
import logging
import re
import sys
from typing import Any
import warnings

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from condseg_jax.errors import InputError
from condseg_jax.model_io.record import check_record
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.system import buckets
from condseg_jax.train.state import TrainState
from condseg_jax.train.state import variables

DIGESTS_SINCE = 3  # version of the settings, see `config.VERSION`

log = logging.getLogger("condseg_jax")


class Checkpoints:
  """The checkpoints of a run.

  Args:
    workdir: workdir of the run.
    read_only: whether nothing will be written.
    verify: whether loaded arrays and records are compared with their digests.

  Raises:
    InputError: the folder of the checkpoints cannot be read.
  """

  def __init__(self, workdir, *, read_only: bool = False, verify: bool = True):
    buckets.connect(workdir)
    self.folder = epath.Path(workdir) / "checkpoints"
    paths: dict[str, Any] = {}
    root = self.folder
    if not buckets.is_bucket(workdir):
      root = root.resolve()  # which would take an address for a relative path
    else:
      if str(workdir).startswith("s3://"):
        from condseg_jax.train import orbax_patches
        orbax_patches.enable_s3()
      # A bucket renames nothing: a checkpoint is complete once it has its last file.
      paths = {"temporary_path_class": ocp.path.atomicity.CommitFileTemporaryPath}
    self._verify = verify
    _ignore_abandoned_requests()
    # Of such requests, too; again for each folder, since callers may reset the filters.
    warnings.filterwarnings("ignore", r"coroutine '\w+Handler\.\w+' was never awaited",
                            RuntimeWarning)
    policies = ocp.checkpoint_managers
    best = policies.BestN(get_metric_fn=lambda m: m["mean_dice"], n=1,
                          keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["mean_dice"], read_only=read_only, create=not read_only,
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]), **paths)
    try:
      self._manager = ocp.CheckpointManager(
          root, options=options,
          item_handlers={"state": ocp.StandardCheckpointHandler(),
                         "model": ocp.JsonCheckpointHandler(),
                         "digests": ocp.JsonCheckpointHandler()})
    except Exception as error:  # orbax lets through what its storage libraries raise
      raise InputError(self.folder, f"cannot be opened ({_line(error)})",
                       "check the folder and its permissions") from error

  def save(self, state: TrainState, record: ModelRecord, mean_dice: float | None) -> None:
    """Starts an asynchronous save; the arrays may be modified once this returns.

    Raises:
      InputError: a parameter is not finite, or the checkpoint, or the one before, cannot be
        written.
    """
    state = jax.tree.map(_owned_by_all, state)
    digests = {"arrays": array_digests(state), "model": record_digest(record.to_json())}
    bad = next((name for name, leaf in _named(state.averaged) if not np.isfinite(leaf).all()), None)
    if bad is not None:
      raise InputError(f"step {int(state.step)}", f"{bad} is not finite; it is not saved",
                       "lower optimizer.learning_rate; the last checkpoint is unchanged")
    args = ocp.args.Composite(state=ocp.args.StandardSave(state),
                              model=ocp.args.JsonSave(record.to_json()),
                              digests=ocp.args.JsonSave(digests))
    metrics = None if mean_dice is None else {"mean_dice": float(mean_dice)}
    self._writing(lambda: self._manager.save(int(state.step), args=args, metrics=metrics,
                                             force=True))

  @property
  def last_step(self) -> int | None:
    return self._manager.latest_step()

  def pick(self, which: str) -> int:
    """Returns the step of `last`, `best` or a number.

    Raises:
      InputError: the checkpoint does not exist.
    """
    steps = self._manager.all_steps()
    if not steps:
      raise InputError(self.folder, "holds no checkpoint", "train first, or check the workdir")
    if which == "best":
      return self._manager.best_step() or max(steps)
    if which == "last":
      return max(steps)
    if not which.isdigit() or int(which) not in steps:
      raise InputError(f"checkpoint {which!r}", f"is not in {self.folder}",
                       f"there are: last, best, {', '.join(map(str, sorted(steps)))}", usage=True)
    return int(which)

  def read_record(self, step: int) -> ModelRecord:
    """Reads config, class table and plan of a checkpoint."""
    tree = self._read(step, "model", ocp.args.JsonRestore())
    digests = self._digests(step)
    if digests and record_digest(tree) != digests.get("model"):
      raise self._damaged(step, "model differs from its SHA-256")
    try:
      record = ModelRecord.from_json(tree)
      check_record(record)
      return record
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise self._damaged(step, f"model cannot be read: {_line(error)}") from error

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Restores the complete state to resume training from.

    Args:
      step: step of the checkpoint.
      like: a state of the same network and optimizer, used for its structure only.

    Raises:
      InputError: the checkpoint belongs to another model or is damaged.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    self._check_sharding(step)
    state = self._read(step, "state", ocp.args.StandardRestore(target))
    self._check_arrays(step, state)
    return state

  def restore_variables(self, step: int) -> dict:
    """Restores the variables for prediction to one device, independent of the saving topology."""
    state = self._arrays(step)
    self._check_arrays(step, state)
    try:
      found = variables(state["params"] if state.get("ema") is None else state["ema"],
                        state.get("statistics"))
    except (KeyError, AttributeError) as error:
      raise self._damaged(step, f"state has no {_line(error)}") from error
    for name, leaf in _named(found):
      if not np.isfinite(leaf).all():
        raise self._damaged(step, f"{name} is not finite")
    return found

  def newest_whole(self) -> int | None:
    """Returns the newest step that loads and has its digests, or None without any.

    Newer, damaged steps are reported and moved to WORKDIR/damaged, so that they can be written
    again.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        self.read_record(step)
        self._check_arrays(step, self._arrays(step))
        return step
      except InputError as error:
        log.warning("%s %s", error.subject, error.reason)
        if jax.process_index() == 0:
          target = self.folder.parent / "damaged"
          target.mkdir(parents=True, exist_ok=True)
          (self.folder / str(step)).rename(target / str(step))
        if jax.process_count() > 1:
          multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()
    return None

  def wait(self) -> None:
    """Blocks until all started saves are on disk.

    Raises:
      InputError: a checkpoint cannot be written; earlier ones are unchanged.
    """
    self._writing(self._manager.wait_until_finished)

  def close(self) -> None:
    try:
      self._manager.close()
    except Exception:
      _end_failed_save()
      raise

  def _arrays(self, step: int) -> dict:
    """Reads all arrays of a checkpoint to one device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    self._check_sharding(step)
    try:
      tree = self._manager.item_metadata(step)["state"]
      target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here),
                            dict(tree))
    except Exception as error:
      raise self._damaged(step, _line(error)) from error
    return self._read(step, "state", ocp.args.StandardRestore(target))

  def _check_sharding(self, step: int) -> None:
    """Parses the file of shardings: deeply nested, it would end the process in the C++ reader."""
    path = self.folder / str(step) / "state" / "_sharding"
    try:
      if path.exists():
        json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
      raise self._damaged(step, f"state/_sharding: {_line(error)}") from error

  def _read(self, step: int, item: str, args) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # orbax and tensorstore raise bare exceptions, too
      if "not compatible" in str(error) or "do not match" in str(error):
        raise InputError(self.folder / str(step), f"is of another model ({_line(error)})",
                         "train in a new workdir, or restore the config it was trained with"
                         ) from error
      raise self._damaged(step, f"{item}: {_line(error)}") from error

  def _digests(self, step: int) -> Mapping:
    """Returns the digests of a checkpoint; {} for those made before there were any."""
    if not self._verify:
      return {}
    if not (self.folder / str(step) / "digests").exists():
      record = self._read(step, "model", ocp.args.JsonRestore())
      if record.get("version", 1) >= DIGESTS_SINCE:
        raise self._damaged(step, "digests is missing")
      log.info("checkpoint %d has no digests (written by an older version) and is not verified",
               step)
      return {}
    digests = self._read(step, "digests", ocp.args.JsonRestore())
    if not isinstance(digests, Mapping) or not isinstance(digests.get("arrays"), Mapping):
      raise self._damaged(step, "digests contains none")
    return digests

  def _check_arrays(self, step: int, state) -> None:
    expected = self._digests(step).get("arrays")
    if expected is None:
      return
    found = array_digests(state)
    for name in sorted({*expected, *found}):
      if expected.get(name) != found.get(name):
        raise self._damaged(step, f"{name} differs from its SHA-256")

  def _damaged(self, step: int, reason: str) -> InputError:
    others = [str(s) for s in sorted(self._manager.all_steps()) if s != step]
    cure = f"use checkpoint {' or '.join(others)}" if others else "restore it from a copy"
    return InputError(self.folder / str(step), f"is damaged ({reason})",
                      f"{cure}; to resume training before it: resume=last_whole")

  def _writing(self, work: Callable[[], Any]) -> None:
    try:
      work()
    except Exception as error:  # of the background thread, with a page of its storage library
      _end_failed_save()
      if buckets.is_bucket(self.folder):
        raise buckets.explained(self.folder, error) from error
      full = "No space left" in str(error)
      reason = "no space left on device" if full else _line(error)
      raise InputError(self.folder, f"cannot be written: {reason}",
                       "check free space and permissions; the last checkpoint is unchanged, and "
                       "the same command resumes from it") from error


# --- digests --------------------------------------------------------------------------------------
def array_digests(state) -> dict[str, str]:
  """Returns path of an array in a state → SHA-256 of its type, shape and values."""
  return {name: _sha256(f"{leaf.dtype.str} {leaf.shape}".encode(), leaf)
          for name, leaf in _named(state)}


def record_digest(tree: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of a record as JSON with sorted keys."""
  return _sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode())


def _sha256(*parts) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(np.ascontiguousarray(part).view(np.uint8).data if isinstance(part, np.ndarray)
                  else part)
  return digest.hexdigest()


def _named(tree) -> list[tuple[str, np.ndarray]]:
  """Returns path and values of every array; a replicated array is read from one device."""
  def values(leaf) -> np.ndarray:
    whole = getattr(leaf, "is_fully_addressable", True)
    return np.asarray(leaf if whole else leaf.addressable_data(0))
  return [(".".join(re.findall(r"\w+", jax.tree_util.keystr(path))), values(leaf))
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _end_failed_save() -> None:
  from condseg_jax.train import orbax_patches
  orbax_patches.end_failed_save()


@functools.cache
def _ignore_abandoned_requests() -> None:
  """Keeps requests that a failed save or restore leaves behind from printing a traceback each."""
  before = sys.unraisablehook

  def hook(unraisable) -> None:
    closed = "Event loop is closed" in str(unraisable.exc_value)
    if not closed and not inspect.iscoroutine(unraisable.object):
      before(unraisable)
  sys.unraisablehook = hook


def _line(error: BaseException) -> str:
  """Returns the first line of an error, with the name of the file that a storage error is about."""
  text = str(error).strip() or repr(error)
  line = text.splitlines()[0].partition(". See full")[0][:160]
  files = re.findall(r"/checkpoints/[\w./-]+", text)
  return line if not files or files[0] in line else f"{line} in {files[0][1:]}"


def _owned_by_all(array: jax.Array) -> jax.Array:
  """Turns a process-local pmap output into a global array replicated over all processes."""
  if jax.process_count() == 1 or not array.is_fully_addressable:
    return array
  return ocp.utils.fully_replicated_host_local_array_to_global_array(array)
