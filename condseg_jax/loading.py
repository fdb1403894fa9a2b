"""A trained network, in the folder of its run or in a bundle, to a predictor."""

import os

from condseg_jax.errors import InputError
from condseg_jax.export.runtime import onnx_functions
from condseg_jax.model_io.load import read_model
from condseg_jax.models.build import build_model
from condseg_jax.predictor import Predictor


def load(workdir: str | os.PathLike, checkpoint: str = "last", runtime: str = "jax",
         locator: str | os.PathLike = "", *, verify: bool = True, members: int = 0) -> Predictor:
  """Loads a training run or a model bundle.

  Args:
    workdir: folder of the run, or the bundle; local or in a bucket. A cross-validated run is the
      ensemble of its members.
    checkpoint: `last`, `best` (on the held-out part of the training cases) or a step.
    runtime: `jax`, or `onnx` (onnxruntime, for bundles exported with ONNX graphs).
    locator: run or bundle of the locator, see `Predictor`; "" for none.
    verify: whether arrays and record of a run are compared with their SHA-256 digests; bundles
      always are.
    members: number of members of an ensemble to use, the first ones; 0 for all.

  Raises:
    InputError: the run, bundle or checkpoint does not exist or is damaged, or an ensemble has fewer
      members.
  """
  trained = read_model(workdir, checkpoint, verify=verify, members=members)
  record = trained.record
  model = build_model(record.config.model, record.config.conditioning, record.table.codes)
  functions = None
  if runtime == "onnx":
    if not trained.graphs:
      raise InputError(workdir, "contains no ONNX graphs",
                       "use a bundle that was exported with ONNX")
    functions = onnx_functions(trained.graphs, encoder_sees_class=model.encoder_sees_class)
  return Predictor(model, trained.variables, record.table, record.plan,
                   trained.facts["step"], record.training,
                   record.config.augment.mirror, record.priors, record.cleaning,
                   functions, load(locator, verify=verify) if locator else None, trained.others)
