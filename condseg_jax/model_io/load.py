"""Loads a trained model from the folder of its run or from a bundle."""

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.bundle import read_bundle
from condseg_jax.model_io.fold_run import FoldRun
from condseg_jax.model_io.fold_run import is_fold_run
from condseg_jax.system import buckets
from condseg_jax.train.checkpoint import Checkpoints


def is_bundle(source) -> bool:
  """Returns whether a model source is a bundle file rather than a run folder."""
  buckets.connect(source)
  path = epath.Path(source)
  return path.is_file() or (path.suffix == ".condseg" and not path.is_dir())


def read_model(source, checkpoint: str = "last", *, verify: bool = True,
               members: int = 0, encoder: bool = False) -> Bundle:
  """Reads the model of a run or a bundle. For a run, `facts` hold only the step.

  Args:
    source: folder of the run, or the bundle; local or in a bucket. A cross-validated run is the
      ensemble of its members.
    checkpoint: `last`, `best` or a step; a bundle holds a single checkpoint.
    verify: whether a checkpoint is compared with its SHA-256 digests; a bundle always is.
    members: number of members of an ensemble to read, the first ones; 0 for all.
    encoder: whether a bundle may hold an encoder alone.

  Raises:
    InputError: the run, checkpoint or bundle is missing or damaged, has fewer members, or members
      that cannot be averaged.
  """
  if is_bundle(source):
    bundle = read_bundle(source)
    if bundle.encoder_only and not encoder:
      raise InputError(source, "holds an encoder alone, which segments nothing",
                       "train from it, with init.source and init.what='encoder'")
    if checkpoint not in ("last", str(bundle.facts["step"])):
      raise InputError(f"checkpoint {checkpoint!r}",
                       f"is not in {source}, which holds that of step {bundle.facts['step']}",
                       "omit the checkpoint", usage=True)
    count = _checked(members, 1 + len(bundle.others), source)
    return bundle._replace(others=bundle.others[:count - 1])
  if is_fold_run(source):
    run = FoldRun.open(source)
    networks = [_read_run(run.member(number), checkpoint, verify)
                for number in range(_checked(members, run.count, source))]
    for number, network in enumerate(networks):
      _check_alike(networks[0], network, run.member(number))
    first = networks[0]
    record = first.record._replace(cleaning=run.cleaning, calibration=run.scalings,
                                   quality=run.quality)
    return first._replace(record=record,
                          others=tuple(network.variables for network in networks[1:]))
  _checked(members, 1, source)
  return _read_run(source, checkpoint, verify)


def _read_run(workdir, checkpoint: str, verify: bool) -> Bundle:
  checkpoints = Checkpoints(workdir, read_only=True, verify=verify)
  try:
    step = checkpoints.pick(checkpoint)
    variables = checkpoints.restore_variables(step)
    return Bundle(checkpoints.read_record(step), variables["params"], {"step": step},
                  statistics=variables.get("statistics", {}))
  finally:
    checkpoints.close()


def _checked(members: int, count: int, source) -> int:
  """Returns the number of members to read."""
  if not 0 <= members <= count:
    raise InputError("members", f"is {members}, {source} has {count}",
                     f"choose 1 to {count}, or 0 for all", usage=True)
  return members or count


def _check_alike(first: Bundle, other: Bundle, folder) -> None:
  """Raises InputError if the probabilities of two networks cannot be averaged."""
  a, b = first.record, other.record
  for what, same in (("class table", a.table == b.table), ("plan", a.plan == b.plan),
                     ("network", (a.config.model, a.config.conditioning) ==
                      (b.config.model, b.config.conditioning))):
    if not same:
      raise InputError(folder, f"has another {what} than the members before it",
                       "train it again, or use fewer `members`", usage=True)
