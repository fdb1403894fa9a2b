"""Checkpoints: the train state and everything needed to use it. The only module that uses orbax.

    WORKDIR/checkpoints/STEP/state    arrays of the `TrainState`
    WORKDIR/checkpoints/STEP/model    JSON: config, class table, plan

The last step and the best step are kept. Writing is asynchronous and atomic: a checkpoint gets its
final name only when it is complete.
"""


from etils import epath
import jax
import orbax.checkpoint as ocp

from condseg_jax.errors import InputError
from condseg_jax.model_io.record import ModelRecord
from condseg_jax.train.state import TrainState
from condseg_jax.train.state import variables


class Checkpoints:
  """The checkpoints of a run.

  Args:
    workdir: workdir of the run.
    read_only: whether nothing will be written.
  """

  def __init__(self, workdir, *, read_only: bool = False):
    self.folder = epath.Path(workdir) / "checkpoints"
    policies = ocp.checkpoint_managers
    best = policies.BestN(get_metric_fn=lambda m: m["mean_dice"], n=1,
                          keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["mean_dice"], read_only=read_only, create=not read_only,
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]))
    self._manager = ocp.CheckpointManager(
        self.folder.resolve(), options=options,
        item_handlers={"state": ocp.StandardCheckpointHandler(),
                       "model": ocp.JsonCheckpointHandler()})

  def save(self, state: TrainState, record: ModelRecord, mean_dice: float | None) -> None:
    """Starts an asynchronous save; the arrays may be modified once this returns."""
    state = jax.tree.map(_owned_by_all, state)
    args = ocp.args.Composite(state=ocp.args.StandardSave(state),
                              model=ocp.args.JsonSave(record.to_json()))
    metrics = None if mean_dice is None else {"mean_dice": float(mean_dice)}
    self._manager.save(int(state.step), args=args, metrics=metrics, force=True)

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
    try:
      return ModelRecord.from_json(tree)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise InputError(self.folder / str(step) / "model", f"cannot be read ({_line(error)})",
                       "use another checkpoint, or train again") from error

  def restore(self, step: int, like: TrainState) -> TrainState:
    """Restores the complete state to resume training from.

    Args:
      step: step of the checkpoint.
      like: a state of the same network and optimizer, used for its structure only.

    Raises:
      InputError: the checkpoint belongs to another model or is damaged.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._read(step, "state", ocp.args.StandardRestore(target))

  def restore_variables(self, step: int) -> dict:
    """Restores the variables for prediction to one device, independent of the saving topology."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
      tree = self._manager.item_metadata(step)["state"]
      target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here),
                            dict(tree))
    except (ValueError, TypeError, KeyError, OSError) as error:
      raise InputError(self.folder / str(step), f"is damaged ({_line(error)})",
                       "use another checkpoint, or train again") from error
    state = self._read(step, "state", ocp.args.StandardRestore(target))
    params = state["params"] if state.get("ema") is None else state["ema"]
    return variables(params, state.get("statistics"))

  def wait(self) -> None:
    """Blocks until all started saves are on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def _read(self, step: int, item: str, args):
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except (ValueError, TypeError, KeyError, OSError) as error:
      raise InputError(self.folder / str(step), f"is damaged or of another model ({_line(error)})",
                       "train in a new workdir, or restore the config it was trained with"
                       ) from error


def _line(error: Exception) -> str:
  return str(error).strip().splitlines()[0][:160] if str(error).strip() else repr(error)


def _owned_by_all(array: jax.Array) -> jax.Array:
  """Turns a process-local pmap output into a global array replicated over all processes."""
  if jax.process_count() == 1 or not array.is_fully_addressable:
    return array
  return ocp.utils.fully_replicated_host_local_array_to_global_array(array)
