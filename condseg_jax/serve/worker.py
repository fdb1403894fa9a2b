"""The process that holds the network: orders in, one JSON line each; events out, one line each.

    python -m condseg_jax.serve.worker WORKDIR CHECKPOINT

Events: `ready` (the network is loaded and compiled) or `failed`; then for each order `reading`,
`predicting` and `done`. SIGUSR1 stops an order at the next window. A process of its own, so that a
reader that crashes on a hostile file, or a prediction that has to be stopped, does not take the
service along.
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
from condseg_jax.serve.handler import work
from condseg_jax.serve.request import Limits
from condseg_jax.system.allocator import freeze_gc
from condseg_jax.system.allocator import release_memory
from condseg_jax.system.cache import enable_compilation_cache


class Stopped(BaseException):
  """The order is not wanted any more."""


def main(workdir: str, checkpoint: str) -> int:
  events = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # what libraries print is no event

  def say(event: str, **told) -> None:
    print(json.dumps({"event": event, **told}), file=events, flush=True)

  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the web process
  for name in ("absl", "nibabel.global"):
    logging.getLogger(name).setLevel(logging.ERROR)
  enable_compilation_cache()
  try:
    predictor = load(workdir, checkpoint)
    warm(predictor)
  except InputError as error:
    say("failed", subject=error.subject, reason=error.reason, cure=error.cure, usage=error.usage)
    return 1
  freeze_gc()
  busy = [False]

  def stop(signum, frame) -> None:
    if busy[0]:
      busy[0] = False
      raise Stopped

  signal.signal(signal.SIGUSR1, stop)
  say("ready", table=predictor.table.to_json(), fusions=FUSIONS)
  for line in sys.stdin:
    told = json.loads(line)
    try:
      busy[0] = True
      tempfile.tempdir = told["folder"]  # goes with the request, even if this process is killed
      outcome = work(predictor, Path(told["folder"]), told["order"], Limits(**told["limits"]), say)
    except Stopped:
      outcome = {"status": 0}
    finally:
      busy[0] = False
    say("done", **outcome)
    release_memory()
  return 0


def warm(predictor: Predictor) -> None:
  """Compiles what predictions run: all classes at once, and one alone.

  Raises:
    InputError: a network of pictures; a body is always a volume.
  """
  plan = predictor.plan
  if len(plan.spacing) != 3:
    raise InputError("--workdir", "is a network of 2-D pictures", "serve one of volumes",
                     usage=True)
  affine = np.zeros((4, 4))
  affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (plan.spacing[0], -plan.spacing[1], -plan.spacing[2], 1)
  volume = Volume(np.zeros(plan.subvolume, np.float32), affine)
  for classes in ((), predictor.table.names[:1]):
    predictor.predict(volume, classes)


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
