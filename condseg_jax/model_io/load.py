"""Loads a trained model from the folder of its run or from a bundle."""

from etils import epath

from condseg_jax.errors import InputError
from condseg_jax.model_io.bundle import Bundle
from condseg_jax.model_io.bundle import read_bundle
from condseg_jax.train.checkpoint import Checkpoints


def is_bundle(source) -> bool:
  """Returns whether a model source is a bundle file rather than a run folder."""
  path = epath.Path(source)
  return path.is_file() or (path.suffix == ".condseg" and not path.is_dir())


def read_model(source, checkpoint: str = "last", *, verify: bool = True,
               encoder: bool = False) -> Bundle:
  """Reads the model of a run or a bundle. For a run, `facts` hold only the step.

  Args:
    source: folder of the run, or the bundle; local or in a bucket.
    checkpoint: `last`, `best` or a step; a bundle holds a single checkpoint.
    verify: whether a checkpoint is compared with its SHA-256 digests; a bundle always is.
    encoder: whether a bundle may hold an encoder alone.

  Raises:
    InputError: the run, checkpoint or bundle is missing or damaged.
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
    return bundle
  checkpoints = Checkpoints(source, read_only=True, verify=verify)
  try:
    step = checkpoints.pick(checkpoint)
    variables = checkpoints.restore_variables(step)
    return Bundle(checkpoints.read_record(step), variables["params"], {"step": step},
                  statistics=variables.get("statistics", {}))
  finally:
    checkpoints.close()
