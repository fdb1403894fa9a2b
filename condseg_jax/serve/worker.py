"""The worker process: reads requests as lines of JSON and writes events as lines of JSON.

    python -m condseg_jax.serve.worker WORKDIR CHECKPOINT MEMBERS [volumes]

Events: `ready` (the network is loaded and compiled) or `failed`; then for each request `reading`,
`predicting`, `progress` (repeated) and `done`. SIGUSR1 stops a request at the next window. The
worker is a separate process so that a reader crashing on a malicious file, or a prediction that has
to be killed, does not end the service.
"""

import json
import logging
import os
from pathlib import Path
import signal
import sys
import tempfile

import numpy as np

from condseg_jax.errors import InputError
from condseg_jax.geometry import Volume
from condseg_jax.infer.fuse import FUSIONS
from condseg_jax.loading import load
from condseg_jax.predictor import Predictor
from condseg_jax.serve.handler import handle
from condseg_jax.serve.request import Limits
from condseg_jax.system.allocator import freeze_gc
from condseg_jax.system.allocator import release_memory
from condseg_jax.system.cache import enable_compilation_cache


class Cancelled(BaseException):
  """The current request was cancelled."""


def main(workdir: str, checkpoint: str, members: str = "0", volumes: str = "") -> int:
  """Runs the worker and returns its exit code.

  Args:
    workdir: folder of the training run, or a bundle.
    checkpoint: `last`, `best` or a step.
    members: number of members of an ensemble to use; 0 for all.
    volumes: "volumes" if the network has to be 3-D, for images come from DICOM or the datastore.
  """
  events = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # libraries that print must not write between the events

  def emit(event: str, **fields) -> None:
    print(json.dumps({"event": event, **fields}), file=events, flush=True)

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the web process handles Ctrl-C
  for name in ("absl", "condseg_jax.nifti"):
    logging.getLogger(name).setLevel(logging.ERROR)
  enable_compilation_cache()
  try:
    predictor = load(workdir, checkpoint, members=int(members))
    if volumes and len(predictor.plan.spacing) != 3:
      raise InputError(workdir, "contains a 2-D network, but DICOM and the datastore have volumes",
                       "serve it without --datastore, --dicomweb and --dicom", usage=True)
    warm_up(predictor)
  except InputError as error:
    emit("failed", subject=error.subject, reason=error.reason, cure=error.cure, usage=error.usage)
    return 1
  freeze_gc()
  busy = False

  def cancel(_signum, _frame) -> None:
    nonlocal busy
    if busy:
      busy = False
      raise Cancelled

  signal.signal(signal.SIGUSR1, cancel)
  emit("ready", table=predictor.table.to_json(), fusions=FUSIONS,
       axes=len(predictor.plan.spacing))
  for line in sys.stdin:
    message = json.loads(line)
    folder, limits = Path(message["folder"]), Limits(**message["limits"])
    try:
      busy = True
      tempfile.tempdir = str(folder)  # removed with the request, even if this process is killed
      outcome = handle(predictor, folder, message["request"], limits, emit)
    except Cancelled:
      outcome = {"status": 0}
    finally:
      busy = False
    emit("done", **outcome)
    release_memory()
  return 0


def warm_up(predictor: Predictor) -> None:
  """Compiles the programs of predictions: of all classes, and of a single one."""
  plan = predictor.plan
  affine = np.eye(3)
  if len(plan.spacing) == 3:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (plan.spacing[0], -plan.spacing[1], -plan.spacing[2], 1)
  shape = (*plan.subvolume, plan.channels) if plan.channels > 1 else plan.subvolume
  volume = Volume(np.zeros(shape, np.float32), affine)
  for classes in ((), predictor.table.names[:1]):
    # Told of its schedule, it also measures its calls, once.
    predictor.predict(volume, classes, announce=lambda *_: lambda _: None)


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
